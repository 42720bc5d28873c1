# A guest of a host that bypasses the platform's mechanism: prints the refusal of the default
# driver, drives the disk with a driver that accepts such a host, and holds a page that no driver
# uses.
said() {
    dmesg | grep -q "$1"
}

device=$(basename /sys/bus/xen/devices/virtio_disk-*)
wait_for "the kernel to report that the driver refuses the device" 20 said 'device does not offer'
[ ! -b /dev/vda ]
echo "lab: ordinary $(dmesg | sed -n 's/.*\(device does not offer.*\)/\1/p')"

echo "$device" >/sys/bus/xen/drivers/virtio_msg_xen/unbind
rmmod virtio_msg_xen
insmod /lib/modules/test/virtio_msg_xen.ko debug=bypass
driven() {
    [ -b /dev/vda ] || said 'device refused queue'
}
wait_for "the disk /dev/vda, or a refusal" 20 driven
if [ -b /dev/vda ]; then
    echo "lab: read $(sha256sum </dev/vda)"
    dd if=/dev/urandom of=/tmp/written bs=64k count=16 2>/dev/null
    dd if=/tmp/written of=/dev/vda bs=64k conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    cmp /tmp/written /dev/vda
    echo "lab: written $(sha256sum </tmp/written)"
else
    echo "lab: refused $(dmesg | sed -n 's/.*\(device refused queue.*\)/\1/p')"
fi
echo "lab: grants $(cat "/sys/bus/xen/devices/$device/grants_outstanding")"

hold_secret
read -r _
