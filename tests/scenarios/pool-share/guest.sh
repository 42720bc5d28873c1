# shared: prints the number of pages in each pool.
shared() {
    sed -n 's/^shared //p' /sys/bus/xen/devices/virtio_disk-*/pool
}

# exercise: writes to all disks at once, twice at a time to each, and reads them again.
exercise() {
    for disk in a b c d; do
        for part in 0 1; do
            dd if=/tmp/data of=/dev/vd$disk bs=1M seek=$((part * 4)) oflag=direct 2>/dev/null &
        done
    done
    wait
    for disk in a b c d; do
        for part in 0 1; do
            dd if=/dev/vd$disk bs=1M skip=$((part * 4)) count=4 iflag=direct 2>/dev/null |
                cmp - /tmp/data && : >/tmp/same$disk$part &
        done
    done
    wait
    [ "$(ls /tmp/same* | wc -l)" = 8 ]
    rm /tmp/same*
}

wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc -a -b /dev/vdd
head -c 4194304 /dev/urandom >/tmp/data
exercise
exercise
echo "lab: pages $(shared | tr '\n' ' ')"
all=0
for pages in $(shared); do
    [ "$pages" -ge 64 ]
    all=$((all + pages))
done
[ $all -gt 512 ]
[ $all -le 768 ]
! dmesg | grep "error.*vd[a-d]" || exit 1
