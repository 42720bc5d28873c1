# Reads from two disks, leaves them idle, and then writes and reads again.
for disk in vda vdb; do
    wait_for "the disk /dev/$disk" 20 test -b /dev/$disk
    dd if=/dev/$disk of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null
done
echo "lab: idle"
read -r _
dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
for disk in vda vdb; do
    dd if=/tmp/data of=/dev/$disk bs=64k oflag=direct conv=notrunc 2>/dev/null
    dd if=/dev/$disk bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/data
done
