# Writes and verifies two disks, with several requests in flight, until a line arrives. Leaves them
# idle until another line arrives, and verifies them again.
for disk in vda vdb; do
    wait_for "the disk /dev/$disk" 20 test -b /dev/$disk
done

# verify DISK MIB: writes new data to a mebibyte of the disk and reads it back.
verify() {
    dd if=/dev/urandom of="/tmp/$1-$2" bs=64k count=16 2>/dev/null
    dd if="/tmp/$1-$2" of="/dev/$1" bs=256k seek="$2M" oflag=direct,seek_bytes conv=notrunc 2>/dev/null
    dd if="/dev/$1" bs=256k skip="$2M" count=4 iflag=direct,skip_bytes 2>/dev/null | cmp - "/tmp/$1-$2"
}

mkdir -p /tmp
round=0
(
    while [ ! -e /tmp/stop ]; do
        round=$((round + 1))
        jobs=
        for disk in vda vdb; do
            for area in 0 2 4 6; do
                verify $disk $area &
                jobs="$jobs $!"
            done
        done
        for job in $jobs; do
            wait "$job" || touch /tmp/wrong
        done
        echo "lab: round $round"
    done
) &
writers=$!
read -r _
touch /tmp/stop
wait $writers
echo "lab: idle"
read -r _
for disk in vda vdb; do
    # The message that waited was the first of those that give pages back.
    wait_for "the pool of $disk to shrink" 30 grep -qx 'shared 64' "/sys/block/$disk/device/../pool"
    verify $disk 1 || touch /tmp/wrong
done
! dmesg | grep -E 'I/O error|BUG:|Oops|Call Trace|blocked for more than' || exit 1
for disk in vda vdb; do
    echo "lab: sum-$disk $(dd if=/dev/$disk iflag=direct bs=1M count=8 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
done
[ ! -e /tmp/wrong ]
