# same WHAT FOUND EXPECTED: fails, and says so, if both differ.
same() {
    [ "$2" = "$3" ] || {
        echo "lab: $1 is $2, not $3"
        return 1
    }
}

# number_of DISK: prints the disk's sequence number, which no other disk has.
number_of() {
    cat "/sys/block/$1/diskseq"
}

# prints: writes to the console's device.
prints() {
    echo hello >&4
}

# others_work: uses the other devices as they were set up once.
others_work() {
    same "the interface's address" "$(ip -4 -o address show eth0 | awk '{ print $4 }')" 10.8.0.1/24
    wait_for "the link" 10 grep -qx 1 /sys/class/net/eth0/carrier
    wait_for "the entropy device" 10 grep -qx virtio_rng.0 /sys/class/misc/hw_random/rng_current
    wait_for "random bytes" 10 dd if=/dev/hwrng of=/dev/null bs=64 count=1
    wait_for "the console" 10 prints
    [ -c /dev/vsock ]
}

# check: fails unless all devices are the same as before, and work.
check() {
    for disk in vda vdb vdc; do
        same "the number of $disk" "$(number_of $disk)" "$(cat /tmp/number-$disk)"
    done
    kill -0 $writer
    same "the idle disk's content" "$(sha256sum </dev/vda)" "$idle_sum"
    dd if=/tmp/open bs=64k count=16 conv=fsync >&3 2>/dev/null
    same "the open disk's content" "$(dd if=/dev/vdb bs=64k skip=$written count=16 iflag=direct 2>/dev/null | sha256sum)" \
        "$(sha256sum </tmp/open)"
    written=$((written + 16))
    others_work
    ! dmesg | grep -E 'unfinished|given up|I/O error|BUG:|Oops|Call Trace' || exit 1
}

for driver in virtio_console virtio_net virtio-rng vmw_vsock_virtio_transport; do
    load $driver
done
wait_for "three disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc
wait_for "the other devices" 30 test -e /sys/class/net/eth0 -a -c /dev/hvc1
# Sends nothing of its own accord.
[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
ip link set eth0 up
ip address add 10.8.0.1/24 dev eth0
exec 3<>/dev/vdb 4<>/dev/hvc1
for disk in vda vdb vdc; do
    number_of $disk >/tmp/number-$disk
done
dd if=/dev/urandom of=/tmp/open bs=64k count=16 2>/dev/null
dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null
idle_sum=$(sha256sum </dev/vda)
written=0
# Direct I/O keeps a request in flight at nearly any time.
(
    while dd if=/dev/zero of=/dev/vdc bs=64k count=64 oflag=direct 2>/dev/null; do
        [ ! -e /tmp/writing ] || echo "lab: writing $(cat /tmp/writing)"
    done
) &
writer=$!
for turn in 1 2; do
    echo $turn >/tmp/writing
    read -r what
    if [ "$what" = checkpoint ]; then
        check
        echo "lab: went on"
        read -r what
    fi
    check
    echo "lab: back $turn"
done
kill $writer
echo "lab: idle $(sha256sum </dev/vda)"
exec 3>&-
echo "lab: open $(sha256sum </dev/vdb)"
