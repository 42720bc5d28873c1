# Makes a file system, copies /tree to it and reads it back from the disk; then hashes the whole
# second disk.
wait_for "the disks /dev/vda and /dev/vdb" 20 test -b /dev/vda -a -b /dev/vdb

/usr/sbin/mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
cp -r /tree /mnt/tree
(cd /tree && find . -type f | sort | xargs sha256sum) >/mnt/sums
cp /mnt/sums /tmp/sums
sync
umount /mnt

echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
cmp /mnt/sums /tmp/sums
(cd /mnt/tree && sha256sum -c /tmp/sums >/tmp/checked) || grep -v ': OK' /tmp/checked
! grep -q FAILED /tmp/checked || exit 1
umount /mnt
echo "lab: files $(wc -l </tmp/sums)"
echo "lab: random $(sha256sum </dev/vdb)"
