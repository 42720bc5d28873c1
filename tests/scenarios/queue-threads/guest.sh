# Reads the disk on the processor that Dom0 names, which has a queue of its own, with direct I/O.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
test -d /sys/block/vda/mq/1 || {
    echo "lab: the disk has one queue"
    exit 1
}
dd if=/dev/vda bs=64k 2>/dev/null | md5sum >before
echo "lab: ready"
while read -r what processor count && test "$what" = read; do
    taskset $((1 << processor)) dd if=/dev/vda of=/dev/null bs=4k count="$count" iflag=direct 2>/dev/null
    echo "lab: read-$processor"
done
dd if=/dev/vda bs=64k 2>/dev/null | md5sum | cmp - before && echo "lab: same"
