# A guest is saved and goes on, and is saved and restored, twice. Requests that were made before are
# finished first; then its disks come back by themselves, as new ones: a disk that nobody had open
# under its old name, and who had one open gets I/O errors. What was flushed is there. Network,
# console, entropy and vsock devices come back as well. The logs of guest and daemon say it.
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
        xl save -c "$domid" "$PWD/saved" || fail "xl could not save the guest and let it go on"
        tell_guest "$domid" checkpoint
        wait_console "$name" 60 "lab: went on"
    fi
    saved=$domid
    xl save "$saved" "$PWD/saved" || fail "xl could not save the guest"
    wait_gone "$saved" 15
    for number in 51712 51728 51744; do
        grep "guest=$saved .*virtio_disk/$number" $daemon_log | grep -q 'restored guest' ||
            fail "the daemon's log does not say what a saved guest loses with disk $number"
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
        fail "the image of the disk $disk is not what the guest wrote"
done
