# Has a disk, whose process loops in Dom0.
wait_for "the disk /dev/vda" 30 test -b /dev/vda
echo "lab: ready"
read -r _
dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null
