# xl saves a guest and lets it continue, and saves and restores it twice. Requests in flight
# complete before the save. After a restore, the kernel finds the disks again as new devices: an
# idle disk has its old name, and programs that had a disk open get I/O errors. Flushed data is
# preserved. Network, console, entropy and vsock devices also return. Guest and daemon log the
# event.
# guests: pv
# soak: pvh
# limit: 240
. /lab/dom0/lib.sh

name=$GUEST-save
modprobe tun
line=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' /lab/xen-configs/blk-pv.cfg)
disks=
for disk in a:idle b:open c:busy; do
    make_disk "$PWD/${disk#*:}.img" 8
    disks="$disks\"$(echo "$line" | sed "s|xvda|xvd${disk%:*}|; s|target=.*|target=$PWD/${disk#*:}.img|")\", "
done
make_initrd initrd /lab/scenarios/save/guest.sh
start_example devices-pv "$name" "$PWD/initrd" "s|^type = .*|type = \"$GUEST\"|" "\$adisk = [$disks]" \
    's|^virtio = \[|&"type=virtio,device1,transport=mmio,grant_usage=1",|' ||
    fail "xl could not create the guest"

for turn in 1 2; do
    wait_console "$name" 60 "lab: writing $turn"
    if [ $turn = 1 ]; then
        xl save -c "$domid" "$PWD/saved" || fail "xl save -c could not save the guest"
        tell_guest "$domid" checkpoint
        wait_console "$name" 60 "lab: went on"
    fi
    saved=$domid
    xl save "$saved" "$PWD/saved" || fail "xl could not save the guest"
    wait_gone "$saved" 15
    for number in 51712 51728 51744; do
        grep "guest=$saved .*virtio_disk/$number" $daemon_log | grep -q 'restored guest' ||
            fail "the daemon's log does not say what happens to disk $number of a restored guest"
    done
    xl restore "$PWD/saved" || fail "xl could not restore the guest"
    domid=$(xl domid "$name")
    tell_guest "$domid" restored
    wait_console "$name" 60 "lab: back $turn"
done
end_guest "$name" 60
check_nothing_mapped
for disk in idle open; do
    [ "$(guest_said "$name" "$disk")" = "$(sha256sum <$disk.img)" ] ||
        fail "the image of the disk $disk does not hold the data that the guest wrote"
done
