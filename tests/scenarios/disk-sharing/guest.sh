wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc
for disk in vda vdb vdc; do
    if [ "$(cat /sys/block/$disk/ro)" = 0 ]; then
        dd if=/dev/urandom of=/dev/$disk bs=64k count=16 conv=fsync 2>/dev/null
    fi
    dd if=/dev/$disk of=/dev/null bs=64k 2>/dev/null
done
echo "lab: ready"
read -r _
