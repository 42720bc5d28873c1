# Drives the passed-through card with the kernel's own virtio_pci and virtio_blk: reads the data
# that Dom0 wrote to the card's disk, and writes other data behind it.
if [ "$(cat /sys/hypervisor/guest_type)" = PV ]; then
    load xen-pcifront
fi
wait_for "the disk /dev/vda" 30 test -b /dev/vda
echo "lab: platform $(cut -c34 /sys/block/vda/device/features)"
echo "lab: found $(dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | sha256sum)"
dd if=/dev/urandom of=/tmp/ours bs=64k count=16 2>/dev/null
dd if=/tmp/ours of=/dev/vda bs=64k seek=32 oflag=direct conv=fsync 2>/dev/null
echo "lab: reread $(dd if=/dev/vda bs=64k skip=32 count=16 iflag=direct 2>/dev/null | sha256sum)"
echo "lab: wrote $(sha256sum </tmp/ours)"
