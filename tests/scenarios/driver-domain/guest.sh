# Reads its disk, writes to it, and reads it again.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
# The driver does not trust a backend outside Dom0.
[ "$(cat /sys/bus/xen/devices/virtio_disk-51712/bounce)" = 1 ]
echo "lab: found $(sha256sum </dev/vda)"
dd if=/dev/urandom of=/tmp/noise bs=1M count=1 2>/dev/null
dd if=/tmp/noise of=/dev/vda bs=128k seek=8 conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda of=/tmp/disk bs=128k 2>/dev/null
dd if=/tmp/disk bs=1M skip=1 count=1 2>/dev/null | cmp - /tmp/noise
echo "lab: disk $(sha256sum </tmp/disk)"
# An entropy device, from the other class of devices.
load virtio-rng
[ "$(cat /sys/class/misc/hw_random/rng_current)" = virtio_rng.0 ]
[ "$(head -c 64 /dev/hwrng | wc -c)" = 64 ]
# Print it twice: the console's ring may wrap around within one of the lines.
echo "lab: written"
echo "lab: written"
