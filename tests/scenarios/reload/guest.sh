gone() {
    [ ! -b /dev/vda ]
}

for turn in 1 2 3; do
    wait_for "the disk /dev/vda" 20 test -b /dev/vda
    echo "lab: loaded $turn"
    read -r _
    dd if=/dev/urandom of=/dev/vda bs=64k count=16 seek=$turn conv=fsync 2>/dev/null
    # As with every xenbus driver, the kernel does not unload the module while a device is bound.
    echo virtio_disk-51712 >/sys/bus/xen/drivers/virtio_msg_xen/unbind
    rmmod virtio_msg_xen
    wait_for "the disk /dev/vda to disappear" 10 gone
    echo "lab: unloaded $turn"
    read -r _
    insmod /lib/modules/virtio_msg_xen.ko
done
wait_for "the disk /dev/vda" 20 test -b /dev/vda
echo "lab: disk $(sha256sum </dev/vda)"
