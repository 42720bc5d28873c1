# Dom0 prepends a line `attack=ATTACK`.
interrupts() {
    awk '/ virtio_disk-51712$/ { print $2 }' /proc/interrupts
}

said() {
    dmesg | grep -q "$1"
}

case ${attack:?} in
nonsense)
    wait_for "the device" 20 said 'is virtio device 2'
    before=$(interrupts)
    sleep 5
    echo "lab: interrupts $(($(interrupts) - before))"
    [ "$(cat /sys/bus/xen/devices/virtio_disk-51712/messages_dropped)" -gt 0 ]
    ;;
changing-config)
    wait_for "the driver to give the device up" 30 \
        said 'the configuration changes whenever it is read'
    ;;
esac
echo "lab: seen"
read -r _
echo virtio_disk-51712 >/sys/bus/xen/drivers/virtio_msg_xen/unbind
rmmod virtio_msg_xen
! dmesg | grep -E 'BUG:|Oops|Call Trace|blocked for more than' || exit 1
