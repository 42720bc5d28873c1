# Reads and writes two disks that the device model emulates, with the stock drivers virtio_pci and
# virtio_blk, and holds a secret in memory that it gives to no device.

# named SERIAL: prints the disk with that serial number.
named() {
    grep -lx "$1" /sys/block/vd*/serial 2>/dev/null | sed 's|/sys/block/\(.*\)/serial|\1|'
}

both() {
    [ -n "$(named off)" ] && [ -n "$(named on)" ]
}

wait_for "two disks" 20 both
head -c 16 /dev/urandom | sha256sum | cut -c 1-32 >/tmp/secret
dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null
for serial in off on; do
    disk=$(named $serial)
    echo "lab: driver-$serial $(basename "$(readlink -f "/sys/block/$disk/device/../driver")")"
    echo "lab: bit-$serial $(cut -c 34 "/sys/block/$disk/device/features")"
    echo "lab: found-$serial $(sha256sum <"/dev/$disk")"
    dd if=/tmp/noise of="/dev/$disk" bs=64k conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    echo "lab: written-$serial $(sha256sum </tmp/noise)"
    echo "lab: read-$serial $(sha256sum <"/dev/$disk")"
done
echo "lab: data-done"
read -r _
echo "lab: secret $(cat /tmp/secret)"
