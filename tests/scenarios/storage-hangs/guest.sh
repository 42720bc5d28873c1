# Writes two disks for ever. When Dom0 says so, gives up the second one's driver, drives that disk
# by a process, which is killed, and by another one, and at last by its driver again.
wait_for "the disk /dev/vdb" 20 test -b /dev/vdb
dd if=/dev/urandom of=/tmp/noise bs=64k count=4 2>/dev/null
disk=$(basename "$(readlink -f /sys/block/vdb/device)")
xen=/sys/bus/xen/drivers/virtio_msg_xen

# write DISK NAME: writes the disk, and prints a line each time.
write() {
    turn=0
    while dd if=/tmp/noise of="/dev/$1" bs=64k oflag=direct 2>/dev/null; do
        turn=$((turn + 1))
        echo "lab: $2 $turn"
        sleep 0.1
    done
}

write vda sound &
write vdb before &
writer=$!
read -r _
echo "lab: unbinding"
kill $writer
echo "$disk" >/sys/bus/virtio/drivers/virtio_blk/unbind
echo "lab: unbound"

echo virtio_disk-51728 >$xen/unbind
for module in xen-evtchn xen-gntalloc xenfs; do
    load $module
done
read -r _
user-driver device/virtio_disk/51728 write </tmp/noise &
writer=$!
read -r _
kill -9 $writer
user-driver device/virtio_disk/51728 read >/tmp/read
echo "lab: drove $(sha256sum </tmp/read)"
read -r _
echo virtio_disk-51728 >$xen/bind
wait_for "the disk /dev/vdb" 20 test -b /dev/vdb
write vdb after
