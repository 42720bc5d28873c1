# Writes and verifies two disks, whenever a line says so.
echo 8 >/proc/sys/kernel/printk
for disk in vda vdb; do
    wait_for "the disk /dev/$disk" 20 test -b /dev/$disk
done

exec 5<>/dev/vda
number=0
check() {
    number=$((number + 1))
    dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
    for disk in vda vdb; do
        dd if=/tmp/data of=/dev/$disk bs=64k oflag=direct conv=notrunc 2>/dev/null
        dd if=/dev/$disk bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/data
    done
    ! dmesg | grep -E 'given up|I/O error|BUG:|Oops' || exit 1
    echo "lab: checked $number"
}

check
while read -r what; do
    case $what in
    check) check ;;
    write)
        # The kernel writes it back later. The last one who closes a disk would wait for that.
        dd if=/tmp/data bs=64k >&5 2>/dev/null
        echo 1 >/proc/sys/vm/dirty_expire_centisecs
        echo 1 >/proc/sys/vm/dirty_writeback_centisecs
        echo "lab: writing"
        ;;
    *) break ;;
    esac
done
[ "$what" = smaller ]
dd if=/tmp/data of=/dev/vda bs=64k oflag=direct conv=notrunc 2>/dev/null
echo "lab: first $(sha256sum </dev/vda)"
# The disk that was given up is gone, or returns errors; nobody hangs.
! dd if=/dev/vdb of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null || exit 1
! dmesg | grep -E 'BUG:|Oops|blocked for more than' || exit 1
