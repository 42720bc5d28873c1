# Reads two disks, writes them and reads them again; then makes the driver do two things that a
# device must refuse, and prints the result for each disk. Before each part but the first, Dom0
# sends a line.

# disk PLACE: prints the xenbus device of the first or second disk.
disk() {
    find /sys/bus/xen/devices -name 'virtio_disk-*' | sort | sed -n "$1s|.*/||p"
}

# block PLACE: prints that disk's block device, if it has one.
block() {
    ls "/sys/bus/xen/devices/$(disk "$1")"/virtio*/block 2>/dev/null
}

both() {
    [ -b "/dev/$(block 1)" ] && [ -b "/dev/$(block 2)" ]
}

# again MODE: loads the driver again with the module's parameter debug=MODE.
again() {
    for place in 1 2; do
        echo "$(disk $place)" >/sys/bus/xen/drivers/virtio_msg_xen/unbind
    done
    rmmod virtio_msg_xen
    dmesg -c >/dev/null
    insmod /lib/modules/test/virtio_msg_xen.ko debug="$1"
}

# line PLACE WORDS: prints the kernel's first message with WORDS about a disk or its virtio device.
line() {
    virtio=$(basename "/sys/bus/xen/devices/$(disk "$1")"/virtio*)
    dmesg | grep -e "$(disk "$1"): " -e "$virtio: " | grep -e "$2" | sed 's/^\[[ 0-9.]*\] //' | head -n 1
}

# said WORDS: prints the number of the kernel's messages with WORDS.
said() {
    dmesg | grep -c -e "$1"
}

# settled: checks whether each device was refused or has a disk.
settled() {
    [ $(($(said 'refuses features') + $(find /sys/block -name 'vd*' | wc -l))) -ge 2 ]
}

both_failed() {
    [ "$(said DEVICE_NEEDS_RESET)" -ge 2 ]
}

wait_for "two disks" 20 both
dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null
for place in 1 2; do
    device=/dev/$(block $place)
    echo "lab: found-$place $(sha256sum <"$device")"
    dd if=/tmp/noise of="$device" bs=64k conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    echo "lab: written-$place $(sha256sum </tmp/noise)"
    echo "lab: read-$place $(sha256sum <"$device")"
done
echo "lab: data-done"

read -r _
again no-access-platform
wait_for "the devices to accept or refuse the features" 20 settled || true
for place in 1 2; do
    echo "lab: platform-$place $(line $place 'refuses features')"
    echo "lab: platform-disk-$place $(block $place)"
done
echo "lab: platform-done"

read -r _
again raw-addresses
wait_for "the kernel to report that both devices failed" 20 both_failed || true
for place in 1 2; do
    echo "lab: raw-$place $(line $place DEVICE_NEEDS_RESET)"
done
echo "lab: raw-done"
