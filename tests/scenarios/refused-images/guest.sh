wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc -a -b /dev/vdd
dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\0' 'Z' >/tmp/expected
dd if=/dev/zero bs=64k count=1 2>/dev/null | tr '\0' '\245' >/tmp/data
for disk in vda vdb vdc vdd; do
    [ "$(cat /sys/block/$disk/size)" = 16384 ]
    dd if=/dev/$disk bs=1M skip=1 count=1 2>/dev/null | cmp - /tmp/expected
    dd if=/tmp/data of=/dev/$disk bs=64k seek=64 conv=fsync 2>/dev/null
done
