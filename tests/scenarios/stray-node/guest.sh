# Reads the disk while virtio_mmio is loaded, and looks for the node that xl made.
load virtio_mmio
wait_for "the disk" 20 test -b /dev/vda
dmesg | grep 'removing .*\.virtio, which nobody emulates'
! ls -d /sys/bus/platform/devices/*.virtio 2>/dev/null || exit 1
echo "lab: sum $(dd if=/dev/vda bs=1M count=1 2>/dev/null | sha256sum)"
read -r _
! dmesg | grep -E 'external abort|Oops|Call trace' || exit 1
