# Uses each of the disks of blk-options.cfg.
wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc

# interrupts QUEUE: prints the number of interrupts of that queue, of all disks and on all CPUs.
interrupts() {
    awk -v name="req.$1" '$NF == name { sum += $2 + $3 } END { print sum }' /proc/interrupts
}

# The qcow2 image: read the backing file's data, then make a file system over it.
echo "lab: base $(head -c 2097152 /dev/vda | sha256sum)"
/usr/sbin/mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count=2 2>/dev/null
sum=$(sha256sum </mnt/file)
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/vda /mnt
[ "$(sha256sum </mnt/file)" = "$sum" ]
umount /mnt
echo "lab: disk $(sha256sum </dev/vda)"

# The large disk: write from both CPUs at once; each has a queue of its own.
[ "$(cat /sys/block/vdb/size)" = $((3 << 31)) ]
[ "$(ls /sys/block/vdb/mq)" = "0
1" ]
dd if=/dev/urandom of=/tmp/low bs=1M count=2 2>/dev/null
dd if=/dev/urandom of=/tmp/high bs=1M count=2 2>/dev/null
first=$(interrupts 0) second=$(interrupts 1)
taskset 1 dd if=/tmp/low of=/dev/vdb bs=64k seek=$((1 << 23)) oflag=direct 2>/dev/null &
taskset 2 dd if=/tmp/high of=/dev/vdb bs=64k seek=$((5 << 23)) oflag=direct 2>/dev/null
wait $!
[ "$(interrupts 0)" -gt "$first" ]
[ "$(interrupts 1)" -gt "$second" ]
echo "lab: low $(sha256sum </tmp/low)"
echo "lab: high $(sha256sum </tmp/high)"
dd if=/dev/vdb bs=1M skip=$((5 << 19)) count=2 iflag=direct 2>/dev/null | cmp - /tmp/high

# The block device, whose blocks the guest sees.
[ "$(cat /sys/block/vdc/queue/logical_block_size)" = 4096 ]
[ "$(cat /sys/block/vdc/queue/physical_block_size)" = 4096 ]
dd if=/tmp/low of=/dev/vdc bs=4096 seek=7 count=9 oflag=direct 2>/dev/null
echo "lab: volume $(sha256sum </dev/vdc)"
# No flush: Dom0 checks where the data is now.
echo "lab: wrote the volume"
read -r _
