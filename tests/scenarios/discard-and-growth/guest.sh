# has_sectors DISK COUNT
has_sectors() {
    [ "$(cat "/sys/block/$1/size")" = "$2" ]
}

wait_for "the disk /dev/vda" 20 test -b /dev/vda
[ "$(cat /sys/block/vda/queue/discard_max_bytes)" -gt 0 ]
[ "$(cat /sys/block/vda/queue/logical_block_size)" = 512 ]
[ "$(cat /sys/block/vda/queue/physical_block_size)" = 4096 ]
dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null
echo "lab: written"
read -r _

blkdiscard -o $((4 << 20)) -l $((8 << 20)) /dev/vda
echo "lab: discarded"

wait_for "the disk to grow" 20 has_sectors vda 131072
wait_for "the block device to grow" 20 has_sectors vdb 16384
dd if=/dev/urandom of=/tmp/end bs=1M count=1 2>/dev/null
dd if=/tmp/end of=/dev/vda bs=1M seek=63 conv=fsync 2>/dev/null
echo "lab: end $(sha256sum </tmp/end)"
echo 3 >/proc/sys/vm/drop_caches
echo "lab: disk $(head -c 16777216 /dev/vda | sha256sum)"
