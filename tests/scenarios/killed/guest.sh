drivers=/sys/bus/xen/drivers/virtio_msg_xen

there() {
    [ -e /sys/class/net/eth0 ] && [ -c /dev/hvc1 ] && [ -c /dev/vsock ] && [ -b /dev/vda ] && [ -b /dev/vdb ] &&
        [ "$(cat /sys/class/misc/hw_random/rng_current)" = virtio_rng.0 ]
}

# waits DEVICE: checks that a message of the device had no answer for as long as one may take.
waits() {
    dmesg | grep -q "$1: waiting for the backend"
}

# ends LIMIT COMMAND…: runs the command; fails if it takes longer than LIMIT seconds.
ends() {
    limit=$1
    shift
    "$@" &
    job=$!
    wait_for "the end of $*" "$limit" sh -c "! kill -0 $job 2>/dev/null"
    wait $job
}

# fill DISK: makes the disk's pool grow. Idle, it gives pages back by a message later.
fill() {
    dd if=/dev/zero of=/dev/$1 bs=1M count=8 oflag=direct 2>/dev/null
    wait_for "the pool of $1 to grow" 10 sh -c "! grep -qx 'shared 64' /sys/block/$1/device/../pool"
}

healthy() {
    ! dmesg | grep -E 'BUG:|Oops|Call Trace|blocked for more than' || exit 1
}

load_drivers() {
    for driver in virtio_console virtio_net virtio-rng vmw_vsock_virtio_transport; do
        load $driver
    done
}

load_drivers
wait_for "the devices" 30 there
# Nothing is sent when the daemon is killed: old kernels log a trace of a packet that takes long.
[ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
ip link set eth0 up
wait_for "the console" 10 sh -c ': 2>/dev/null <>/dev/hvc1'
exec 3<>/dev/hvc1
echo "lab: devices 1"
read -r parts
read -r _

# No daemon answers, and no state changes. Who changes the rings' sizes waits with a lock of all
# network interfaces, until the driver is unloaded.
/usr/sbin/ethtool -G eth0 rx 64 &
resizing=$!
wait_for "virtio-0 to wait" 30 waits virtio-0
ends 30 rmmod virtio_net
wait $resizing || :
echo virtio-0 >$drivers/unbind
healthy
echo "lab: unloaded virtio_net"

# The next daemon serves the others.
dd if=/dev/hwrng of=/dev/null bs=64 count=1 2>/dev/null
echo "still here" >&3
[ "$(ls /sys/bus/virtio/devices | wc -l)" = 5 ]
dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null
! dmesg | grep 'requests unfinished' || exit 1
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

# Pools of disks wait for the daemon. A driver and a device can be unbound, the module unloaded.
bind_disks() {
    insmod /lib/modules/virtio_msg_xen.ko
    for disk in vda vdb; do
        wait_for "the disk /dev/$disk" 30 test -b /dev/$disk
    done
}

# pools_wait: unloads everything while the disks' pools wait for a killed daemon.
pools_wait() {
    bind_disks
    for disk in vda vdb; do
        fill $disk
    done
    echo "lab: idle 1"
    read -r _
    for device in virtio_disk-51712 virtio_disk-51728; do
        wait_for "$device to wait" 60 waits $device
    done
    ends 10 cat $drivers/virtio_disk-51712/pool $drivers/virtio_disk-51712/grants_outstanding
    vda=$(basename "$(readlink -f /sys/block/vda/device)")
    ends 10 sh -c "echo $vda >/sys/bus/virtio/drivers/virtio_blk/unbind"
    ends 20 sh -c "echo virtio_disk-51728 >$drivers/unbind"
    [ ! -b /dev/vda ]
    [ ! -b /dev/vdb ]
    for device in $drivers/virtio*; do
        ends 30 sh -c "echo ${device##*/} >$drivers/unbind"
    done
    ends 10 rmmod virtio_msg_xen
    [ "$(dmesg | grep -c 'requests unfinished')" = 0 ]
    healthy
    echo "lab: unloaded again"
    read -r _
}

[ "$parts" != all ] || pools_wait

bind_disks
load_drivers
wait_for "the devices to be back" 30 there
dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null
echo "lab: devices 2"

(while dd if=/dev/zero of=/dev/vdb bs=64k count=64 oflag=direct 2>/dev/null; do echo "lab: writing"; done) &
read -r _
echo virtio_disk-51728 >$drivers/unbind
dmesg | grep -q 'requests unfinished'
! echo virtio_disk-51728 >$drivers/bind || exit 1
echo virtio_disk-51712 >$drivers/unbind
[ ! -b /dev/vda ]
! rmmod virtio_msg_xen || exit 1
healthy
echo "lab: kept"

read -r _
[ "$parts" = all ] || exit 0

# A disk whose pool waits does not keep the guest from its end. Without it, each other device would
# take 10 s for its reset and xenbus 5 s to give it up.
for device in $drivers/virtio-*; do
    echo "${device##*/}" >$drivers/unbind
done
echo virtio_disk-51712 >$drivers/bind
wait_for "the disk /dev/vda" 30 test -b /dev/vda
dmesg -c >/dev/null
fill vda
echo "lab: idle 2"
read -r _
wait_for "virtio_disk-51712 to wait" 60 waits virtio_disk-51712
