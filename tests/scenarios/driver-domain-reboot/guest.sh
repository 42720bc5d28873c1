# Writes and verifies files on a disk of the driver domain's, and sends a stream to Dom0 by an
# interface of its, until a line arrives.
echo 90 >/proc/sys/kernel/hung_task_timeout_secs
load virtio_net
for disk in vda vdb; do
    wait_for "the disk $disk" 30 test -b /dev/$disk
done
for module in crc32c_generic ext4; do
    [ ! -e /lib/modules/$module.order ] || load $module
done
programs=/dev/$(basename "$(dirname "$(grep -lx 1 /sys/block/vd*/ro)")")
disk=/dev/vda
[ "$programs" != /dev/vda ] || disk=/dev/vdb
mount -t ext4 -o ro "$programs" /mnt
mkdir -p /tmp /data
mount -t ext4 $disk /data
wait_for "the interface eth0" 20 test -e /sys/class/net/eth0
ip address add 10.9.0.2/24 dev eth0
ip link set eth0 up
wait_for "Dom0" 20 ping -q -c 1 -W 1 10.9.0.1

# program NAME OPTION…: runs a program of the disk.
program() {
    name=$1
    shift
    LD_LIBRARY_PATH=/mnt/lib "/mnt/bin/$name" "$@"
}

program iperf3 -c 10.9.0.1 -t 3600 >/tmp/stream 2>&1 &
stream=$!

# verified: writes and verifies two files: one past the page cache, and one through it.
verified() {
    program fio --eta=never --output=/tmp/fio --thread=1 --size=12m --verify=crc32c \
        --verify_fatal=1 --randrepeat=0 --ioengine=libaio \
        --name=direct --filename=/data/direct --rw=randwrite --bsrange=4k-64k --iodepth=16 --direct=1 \
        --name=cached --filename=/data/cached --rw=write --bs=256k --iodepth=1 --direct=0 --fsync=8
}

# Requests are unfinished at any time, also between the rounds.
dd if=/dev/urandom of=/tmp/noise bs=1M count=1 2>/dev/null
(
    while [ ! -e /tmp/stop ]; do
        dd if=/tmp/noise of=/data/noise bs=128k oflag=direct conv=notrunc 2>/dev/null
    done
) &
noise=$!
round=0
(
    while [ ! -e /tmp/stop ]; do
        round=$((round + 1))
        verified || {
            touch /tmp/wrong
            cat /tmp/fio
        }
        echo "lab: round $round"
    done
) &
writer=$!
read -r _
touch /tmp/stop
wait $writer $noise
echo 3 >/proc/sys/vm/drop_caches
cmp /tmp/noise /data/noise
kill -0 $stream || {
    cat /tmp/stream
    touch /tmp/wrong
}
kill $stream || true
wait $stream || true
umount /data
dmesg | grep -q 'requests are done again'
! dmesg | grep -E 'I/O error|BUG:|Oops|Call Trace|blocked for more than|EXT4-fs error'
[ ! -e /tmp/wrong ]
