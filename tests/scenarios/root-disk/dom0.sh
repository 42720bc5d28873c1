# A Debian 13 guest whose root is on a virtio disk, with the package of the module in it: boots by
# pygrub, or an HVM guest by a kernel from Dom0; reboots, panics and boots again; a new initrd
# (MODULES=dep) that the guest makes itself boots too.
# guests: pv
# soak: pvh hvm
# machine: systemd
# limit: 400
. /lab/dom0/lib.sh

name=$GUEST-root-disk
disk=/dev/$(basename "$(dirname "$(grep -lx guest-root /sys/block/vd*/serial)")")

# boot_files: copies the guest's kernel and initrd, as an administrator does for an HVM guest.
boot_files() {
    mkdir -p system
    mount -t ext4 -o ro "$disk" system
    cp -L system/vmlinuz system/initrd.img .
    umount system
}

# order LINE NUMBER: gives the guest an order, and waits for its boot of this number. The domain is
# another one then.
order() {
    tell_guest "$domid" "$1"
    wait_console "$name" 180 "lab: up $2"
    domid=$(xl domid "$name")
}

set -- "s|target=.*\"|target=$disk\"|"
if [ "$GUEST" = hvm ]; then
    boot_files
    set -- "$@" "s|^kernel = .*|kernel = \"$PWD/vmlinuz\"|" "s|^ramdisk = .*|ramdisk = \"$PWD/initrd.img\"|"
fi
case $GUEST in
pv) start_example root-pv "$name" "$PWD/initrd.img" "$@" ;;
pvh) start_example root-pvh "$name" "$PWD/initrd.img" "$@" ;;
hvm) start_example root-hvm "$name" "$PWD/initrd.img" "$@" ;;
esac || fail "xl could not create the guest"
wait_console "$name" 180 'lab: up 1'
domid=$(xl domid "$name")
echo "kernel $(guest_said "$name" kernel), root $(guest_said "$name" root)"
[ "$(guest_said "$name" root)" = '/dev/vda ext4' ] || fail "its root is $(guest_said "$name" root)"
[ -n "$(guest_said "$name" module)" ] || fail "its module is not loaded"
[ -z "$(guest_said "$name" 'failed units:')" ] ||
    fail "units of the guest failed: $(guest_said "$name" 'failed units:')"
tell_guest "$domid" 'virtio-msg-xen-doctor >/var/lib/doctor; sed "s/^/lab: doctor: /" /var/lib/doctor; ! grep -q ^error /var/lib/doctor'
wait_console "$name" 60 'lab: status'
[ "$(guest_said "$name" status)" = 0 ] || fail "the guest's doctor finds errors"
order reboot 2
order panic 3
tell_guest "$domid" 'echo MODULES=dep >/etc/initramfs-tools/conf.d/dep; update-initramfs -u >/dev/null && echo lab: made 0'
wait_console "$name" 180 'lab: made'
order reboot 4
tell_guest "$domid" poweroff
wait_gone "$domid" 90
e2fsck -fn "$disk" || fail "the guest's file system has errors"
check_nothing_mapped
