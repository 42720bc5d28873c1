# The kernel's driver leaves the device to whoever comes next.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
echo virtio_disk-51712 >/sys/bus/xen/drivers/virtio_msg_xen/unbind
rmmod virtio_msg_xen
for module in xen-evtchn xen-gntalloc xenfs; do
    load $module
done

# All that the process gets are these devices.
mkdir -p /etc
echo 'driver:x:1000:1000::/:/bin/sh' >/etc/passwd
for device in evtchn gntalloc xenbus; do
    chown 1000 "/dev/xen/$device"
done
disk() {
    su driver -c "/bin/user-driver device/virtio_disk/51712 $1"
}

disk read >/tmp/read
echo "lab: read $(sha256sum </tmp/read)"
head -c 1048576 /dev/urandom >/tmp/written
disk write </tmp/written
echo "lab: written $(sha256sum </tmp/written)"
disk read >/tmp/read
cmp /tmp/read /tmp/written
