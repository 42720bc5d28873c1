# Two disks with different keys in XenStore: prints how the driver treats them, and which keys the
# guest can change.

# disk PLACE: prints the xenbus device of the first or second disk.
disk() {
    find /sys/bus/xen/devices -name 'virtio_disk-*' | sort | sed -n "$1s|.*/||p"
}

# store PLACE: prints that disk's directory in XenStore.
store() {
    echo "device/$(disk "$1" | tr - /)"
}

both() {
    [ -b /dev/vda ] && [ -b /dev/vdb ]
}

# bounces MOMENT: prints for each disk whether the driver bounces.
bounces() {
    for place in 1 2; do
        echo "lab: bounces-$1-$place $(cat "/sys/bus/xen/devices/$(disk $place)/bounce")"
    done
}

# try WORDS PATH VALUE: writes to XenStore and prints the result.
try() {
    answer=$(probe store-write "$2" "$3" 2>&1) && answer=written
    echo "lab: $1 $answer"
}

wait_for "two disks" 20 both
bounces first
dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null
for device in /dev/vda /dev/vdb; do
    dd if=/tmp/noise of=$device bs=64k conv=fsync 2>/dev/null
done
echo "lab: written $(sha256sum </tmp/noise)"
echo "lab: disks-done"
read -r _

backend=$(probe store-read "$(store 1)/backend")
echo "lab: sees $(probe store-read "$backend/grant_usage")"
try backend "$backend/grant_usage" 0
try own "$(store 1)/trusted" 0
echo "lab: tries-done"
read -r _

for place in 1 2; do
    echo "$(disk $place)" >/sys/bus/xen/drivers/virtio_msg_xen/unbind
done
rmmod virtio_msg_xen
insmod /lib/modules/virtio_msg_xen.ko
wait_for "two disks" 20 both
bounces 'then'
