# xl saves a guest and lets it continue, and saves and restores it twice. The guest goes on: its
# disks are the same devices, with requests in flight and files open; network interface, console,
# entropy and vsock devices are as they were. The guest, which sends nothing itself, announces
# itself to the bridge. The daemon has nothing of the saved guest mapped.
# guests: pv
# soak: pvh pv-bookworm pvh-sid hvm
# not-on-arm: xl cannot save guests there
# limit: 240
. /lab/dom0/lib.sh

name=$GUEST-save
modprobe -a tun bridge
trap 'ip link delete xenbr0 2>/dev/null || true' EXIT
ip link add xenbr0 type bridge
ip link set xenbr0 up
line=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' /lab/xen-configs/blk-pv.cfg)
disks=
all="a:idle b:open c:busy" kind="s|^type = .*|type = \"$GUEST\"|"
if [ "$GUEST" = hvm ]; then
    # QEMU emulates the first four disks too, and a screen unless it is told.
    all="e:idle f:open g:busy" kind="$kind; s|^extra|cmdline|; \$avga = \"none\"\nvnc = 0"
fi
for disk in $all; do
    make_disk "$PWD/${disk#*:}.img" 8
    disks="$disks\"$(echo "$line" | sed "s|xvda|xvd${disk%:*}|; s|target=.*|target=$PWD/${disk#*:}.img|")\", "
done
make_initrd initrd /lab/scenarios/save/guest.sh
start_example devices-pv "$name" "$PWD/initrd" "$kind" "\$adisk = [$disks]" \
    's|^virtio = \[|&"type=virtio,device1,grant_usage=1",|' ||
    fail "xl could not create the guest"

# The number of the guest's network interface, and its address.
interface=$(xenstore-list "/local/domain/0/backend/virtio/$domid" | while read -r number; do
    ! xenstore-exists "/local/domain/0/backend/virtio/$domid/$number/tap" || echo "$number"
done)
address=$(xenstore-read "/local/domain/0/backend/virtio/$domid/$interface/mac")

# check_announced: waits until the bridge knows the guest's address, at its present port.
check_announced() {
    local tap
    tap=$(xenstore-read "/local/domain/0/backend/virtio/$domid/$interface/tap")
    wait_for "the guest to announce itself at $tap" 20 \
        "bridge fdb show br xenbr0 | grep -q '^$address dev $tap '" sh -c 'echo; exec bridge monitor fdb'
}

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
    check_nothing_mapped
    xl restore "$PWD/saved" || fail "xl could not restore the guest"
    domid=$(xl domid "$name")
    check_announced
    tell_guest "$domid" restored
    wait_console "$name" 60 "lab: back $turn"
done
end_guest "$name" 60
check_nothing_mapped
for disk in idle open; do
    [ "$(guest_said "$name" "$disk")" = "$(sha256sum <$disk.img)" ] ||
        fail "the image of the disk $disk does not hold the data that the guest wrote"
done
