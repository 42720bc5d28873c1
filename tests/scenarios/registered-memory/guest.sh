# Writes its disk, directly and through the page cache, and reads it again.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
dd if=/dev/urandom of=/tmp/noise bs=1M count=4 2>/dev/null
dd if=/tmp/noise of=/dev/vda bs=64k oflag=direct 2>/dev/null
dd if=/tmp/noise of=/dev/vda bs=1M seek=4 conv=fsync 2>/dev/null
dd if=/dev/vda bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/noise
echo 3 >/proc/sys/vm/drop_caches
echo "lab: disk $(sha256sum </dev/vda)"
