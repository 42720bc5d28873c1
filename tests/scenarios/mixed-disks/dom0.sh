# A guest with a disk of specification=virtio is given another one without it, by xl. From then on
# libxl knows of none of its disks, and would make the guest again without any: see UPSTREAM.md.
# xen-virtiod refuses to add to them.
# guests:
# soak: pv
# limit: 120
. /lab/dom0/lib.sh

name=$GUEST-mixed-disks
make_disk virtio.img 8
make_disk other.img 8
make_initrd initrd /lab/scenarios/mixed-disks/guest.sh
start_guest "$name" "$PWD/initrd" "$PWD/virtio.img" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: ready'

# listed: prints the number of disks in libxl's description of the guest.
listed() {
    xl list -l "$domid" 2>libxl | grep -c '"pdev_path"' || true
}
[ "$(listed)" = 1 ] || fail "libxl knows of $(listed) disks"
modprobe -a loop xen-blkback
loop=$(losetup -f --show other.img)
trap 'losetup -d $loop' EXIT
xl block-attach "$domid" "format=raw,vdev=xvdd,access=rw,backendtype=phy,script=/lab/scenarios/mixed-disks/hotplug,target=$loop" ||
    fail "xl refuses the second disk: it does not need xen-virtiod's refusal any more"
[ "$(listed)" = 0 ] || fail "libxl knows of $(listed) disks: it does not need xen-virtiod's refusal any more"
grep 'both xen and virtio paths are present' libxl || fail "libxl says: $(cat libxl)"
! xen-virtiod attach "$name" disk "target=$PWD/other.img" 2>refused || fail "xen-virtiod attached a disk"
grep 'libxl cannot hold both kinds' refused || fail "xen-virtiod says: $(cat refused)"
tell_guest "$domid" end
end_guest "$name" 30
