drivers=/sys/bus/xen/drivers/virtio_msg_xen

there() {
    [ -e /sys/class/net/eth0 ] && [ -c /dev/hvc1 ] && [ -c /dev/vsock ] && [ -b /dev/vda ] && [ -b /dev/vdb ] &&
        [ "$(cat /sys/class/misc/hw_random/rng_current)" = virtio_rng.0 ]
}

healthy() {
    ! dmesg | grep -E 'BUG:|Oops|Call Trace|blocked for more than'
}

load_drivers() {
    for driver in virtio_console virtio_net virtio-rng vmw_vsock_virtio_transport; do
        load $driver
    done
}

load_drivers
wait_for "the devices" 30 there
ip link set eth0 up
wait_for "the console" 10 sh -c ': 2>/dev/null <>/dev/hvc1'
exec 3<>/dev/hvc1
echo "lab: devices 1"
read -r _

# No daemon answers, and no state changes: unbind completes after the time limit for a response.
echo virtio-0 >$drivers/unbind
rmmod virtio_net
healthy
echo "lab: unloaded virtio_net"

# The next daemon serves the others.
dd if=/dev/hwrng of=/dev/null bs=64 count=1 2>/dev/null
echo "still here" >&3
[ "$(ls /sys/bus/virtio/devices | wc -l)" = 5 ]
dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null
! dmesg | grep 'requests unfinished'
exec 3>&-
for driver in virtio_rng vmw_vsock_virtio_transport; do
    rmmod $driver
done
for device in $drivers/virtio*; do
    echo "${device##*/}" >$drivers/unbind
done
rmmod virtio_msg_xen
healthy
echo "lab: unloaded all"

insmod /lib/modules/virtio_msg_xen.ko
load_drivers
wait_for "the devices to be back" 30 there
dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null
echo "lab: devices 2"

(while dd if=/dev/zero of=/dev/vdb bs=64k count=64 oflag=direct 2>/dev/null; do echo "lab: writing"; done) &
read -r _
echo virtio_disk-51728 >$drivers/unbind
dmesg | grep -q 'requests unfinished'
! echo virtio_disk-51728 >$drivers/bind
echo virtio_disk-51712 >$drivers/unbind
[ ! -b /dev/vda ]
! rmmod virtio_msg_xen
healthy
echo "lab: kept"
