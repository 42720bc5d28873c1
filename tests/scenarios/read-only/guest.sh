wait_for "the disk /dev/vda" 20 test -b /dev/vda
echo "lab: ro $(cat /sys/block/vda/ro)"
[ "$(cat /sys/block/vda/ro)" = 1 ]
if dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync; then
    echo "lab: the write succeeded"
    false
fi
echo "lab: disk $(sha256sum </dev/vda)"
