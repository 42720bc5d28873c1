unload() {
    echo virtio_disk-51712 >/sys/bus/xen/drivers/virtio_msg_xen/unbind
    rmmod virtio_msg_xen
    dmesg -c >/dev/null
}

said() {
    dmesg | grep -q "$1"
}

wait_for "the disk /dev/vda" 20 test -b /dev/vda
unload
! insmod /lib/modules/test/virtio_msg_xen.ko debug=anything 2>/dev/null || exit 1
insmod /lib/modules/test/virtio_msg_xen.ko debug=no-access-platform
wait_for "the kernel to say that the features are refused" 20 said 'refuses features'
[ ! -b /dev/vda ]
echo "lab: platform $(dmesg | grep 'refuses features')"
read -r _

unload
insmod /lib/modules/test/virtio_msg_xen.ko debug=raw-addresses
wait_for "the kernel to say that the device failed" 20 said DEVICE_NEEDS_RESET
echo "lab: raw $(dmesg | grep DEVICE_NEEDS_RESET)"
