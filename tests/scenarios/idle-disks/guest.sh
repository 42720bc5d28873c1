# Reads from each disk, leaves the disks idle, and then unbinds their drivers.
for letter in a b c d e f g h; do
    wait_for "the disk vd$letter" 20 test -b /dev/vd$letter
    dd if=/dev/vd$letter of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null
done
echo "lab: granted $(cat /sys/bus/xen/devices/virtio_disk-*/grants_outstanding | awk '{ sum += $1 } END { print sum }')"
echo "lab: idle"
read -r _
for device in /sys/bus/xen/drivers/virtio_msg_xen/virtio_disk-*; do
    echo "${device##*/}" >/sys/bus/xen/drivers/virtio_msg_xen/unbind
done
echo "lab: left"
read -r _
