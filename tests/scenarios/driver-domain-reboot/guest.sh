# Writes and verifies files on a disk of the driver domain's, and sends a stream to Dom0 by an
# interface of its, until a line arrives.
echo 90 >/proc/sys/kernel/hung_task_timeout_secs
load virtio_net
for disk in vda vdb; do
    wait_for "the disk $disk" 30 test -b /dev/$disk
done
programs=/dev/$(basename "$(dirname "$(grep -lx 1 /sys/block/vd*/ro)")")
disk=/dev/vda
[ "$programs" != /dev/vda ] || disk=/dev/vdb
mount_programs "$programs"
mkdir -p /tmp /data
mount -t ext4 $disk /data
send_stream

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
stop_stream
umount /data
dmesg | grep -q 'requests are done again'
! dmesg | grep -E 'I/O error|BUG:|Oops|Call Trace|blocked for more than|EXT4-fs error' || exit 1
[ ! -e /tmp/wrong ]
