# For each word from Dom0: `serial` asks the disk for its serial number, `work` reads 100 and writes
# 20 blocks, one after the other, and flushes.
wait_for "the disk" 20 test -b /dev/vda
echo "lab: ready"
while read -r word; do
    case $word in
    serial) cat /sys/block/vda/serial >/dev/null ;;
    work)
        dd if=/dev/vda of=/dev/null bs=4k count=100 iflag=direct 2>/dev/null
        dd if=/dev/zero of=/dev/vda bs=4k count=20 oflag=direct conv=fsync 2>/dev/null
        echo "lab: worked"
        ;;
    *) break ;;
    esac
done
