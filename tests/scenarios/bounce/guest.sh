# bounces DISK YES: checks that the disk's device bounces (1) or does not (0).
bounces() {
    [ "$(cat "/sys/bus/xen/devices/virtio_disk-$1/bounce")" = "$2" ]
}

# reload PARAMETER…: loads the module again, with these parameters.
reload() {
    for device in 51712 51728 51744; do
        echo virtio_disk-$device >/sys/bus/xen/drivers/virtio_msg_xen/unbind
    done
    rmmod virtio_msg_xen
    insmod /lib/modules/virtio_msg_xen.ko "$@"
    wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc
}

wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc
# Buffers in the pool are copies without any byte beside them, whether or not the backend is
# trusted.
probe write-beside /dev/vdb concealed-by-pool
probe read-beside /dev/vdb concealed-by-pool

reload pool=0
bounces 51712 1
bounces 51728 0
bounces 51744 1

probe write-beside /dev/vda concealed-by-trust
probe read-beside /dev/vda concealed-by-trust
probe write-beside /dev/vdb overlooked-by-trust
probe read-beside /dev/vdb overlooked-by-trust

# With blocks smaller than a page, the driver bounces file data too.
/usr/sbin/mke2fs -q -t ext4 -b 1024 /dev/vdc
mount -t ext4 /dev/vdc /mnt
cp -r /tree/num /tree/slice /mnt
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vdc /mnt
diff -r /tree/num /mnt/num
diff -r /tree/slice /mnt/slice
umount /mnt

# The guest's administrator can override the toolstack.
reload pool=0 bounce=always
bounces 51728 1
probe write-beside /dev/vdb concealed-by-parameter
probe read-beside /dev/vdb concealed-by-parameter
