# name_of VDEV: prints the disk's current name, if the disk exists.
name_of() {
    grep -lx "$1" /sys/block/vd*/serial 2>/dev/null | tail -n 1 | cut -d / -f 4
}

# renewed VDEV NUMBER: checks whether the disk has another sequence number than this.
renewed() {
    now=$(name_of "$1") && [ -n "$now" ] && [ "$(cat "/sys/block/$now/diskseq")" != "$2" ]
}

# all_renewed: checks whether each disk has another sequence number than before the save.
all_renewed() {
    renewed xvda "$idle" && renewed xvdb "$open" && renewed xvdc "$busy"
}

number_of() {
    cat "/sys/block/$(name_of "$1")/diskseq"
}

# others_back COUNT: checks whether the other devices were found so many times.
others_back() {
    [ "$(dmesg | grep -c 'virtio_msg_xen virtio-[0-3]: virtio[0-9]* is virtio device')" = "$1" ]
}

# same WHAT FOUND EXPECTED: fails, and says so, if both differ.
same() {
    [ "$2" = "$3" ] || {
        echo "lab: $1 is $2, not $3"
        return 1
    }
}

# prints: writes to the console's device.
prints() {
    echo hello >/dev/hvc1
}

# others_work NUMBER: configures and uses the other devices, as after each restore. The kernel may
# still remove the devices that had these names before.
others_work() {
    wait_for "the other devices" 30 test -e /sys/class/net/eth0 -a -c /dev/hvc1
    wait_for "the network device to be up" 10 ip link set eth0 up
    wait_for "the network device's address" 10 ip address add "10.8.0.$1/24" dev eth0
    wait_for "the entropy device" 10 grep -qw virtio_rng.0 /sys/class/misc/hw_random/rng_available
    wait_for "random bytes" 10 dd if=/dev/hwrng of=/dev/null bs=64 count=1
    wait_for "the console" 10 prints
}

for driver in virtio_console virtio_net virtio-rng vmw_vsock_virtio_transport; do
    load $driver
done
wait_for "three disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc
others_work 1
for turn in 1 2; do
    idle=$(number_of xvda) open=$(number_of xvdb) busy=$(number_of xvdc)
    idle_name=$(name_of xvda)
    dd if=/dev/urandom of="/dev/$idle_name" bs=64k count=16 conv=fsync 2>/dev/null
    dd if=/dev/urandom of="/dev/$(name_of xvdb)" bs=64k count=16 conv=fsync 2>/dev/null
    idle_sum=$(sha256sum <"/dev/$idle_name") open_sum=$(sha256sum <"/dev/$(name_of xvdb)")

    exec 3<>"/dev/$(name_of xvdb)"
    # Direct I/O keeps a request in flight at nearly any time.
    (while dd if=/dev/zero of="/dev/$(name_of xvdc)" bs=64k count=64 oflag=direct 2>/dev/null; do
        echo "lab: writing $turn"
    done) &
    writer=$!
    read -r what
    if [ "$what" = checkpoint ]; then
        # The guest was suspended and not restored: the disk is the same device.
        dd if=/dev/zero of="/dev/$(name_of xvdc)" bs=64k count=1 oflag=direct 2>/dev/null
        same "the disk's number" "$(number_of xvdc)" "$busy"
        echo "lab: went on"
        read -r what
    fi
    wait_for "the disks to be back" 30 all_renewed
    # The writer got an I/O error, and no process waits for ever.
    kill $writer 2>/dev/null || true
    wait $writer || true
    ! dd if=/dev/zero bs=512 count=1 conv=fsync >&3 2>/dev/null
    exec 3>&-

    same "the idle disk's name" "$(name_of xvda)" "$idle_name"
    same "the idle disk's content" "$(sha256sum <"/dev/$idle_name")" "$idle_sum"
    same "the open disk's content" "$(sha256sum <"/dev/$(name_of xvdb)")" "$open_sum"
    same "the number of lost devices" "$(dmesg | grep -c 'the guest was restored or moved')" $((7 * turn))
    # The disks may be back while the kernel still removes the others.
    wait_for "the other devices to be back" 30 others_back $((4 * (turn + 1)))
    others_work $((turn + 1))
    ! dmesg | grep -qE 'unfinished|BUG:|Oops|Call Trace'
    echo "lab: back $turn"
done
echo "lab: idle $idle_sum"
echo "lab: open $open_sum"
