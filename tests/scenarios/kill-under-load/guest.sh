# Writes and verifies the disk, or both, and sends a stream to Dom0, until a line arrives.
echo 30 >/proc/sys/kernel/hung_task_timeout_secs
load virtio_net
wait_for "the disk with the programs" 30 test -b /dev/vdb
mount_programs /dev/vdb
send_stream

# The size of each part of the disk in MiB, which the kernel's command line may set.
size=$(sed -n 's/.*lab.size=\([0-9]*\).*/\1/p' /proc/cmdline)
size=${size:-16}

# The disk for requests of mixed sizes: a second one, if there is one.
mixed=/dev/vda
[ ! -b /dev/vdc ] || mixed=/dev/vdc

# verified: writes and verifies the disk once, in three parts: requests of one page, of mixed sizes
# with fsync, and large ones through the page cache. It gives back the storage of a second disk.
verified() {
    [ $mixed = /dev/vda ] || blkdiscard $mixed
    program fio --eta=never --output=/tmp/fio --thread=1 --size="${size}m" --verify=crc32c \
        --verify_fatal=1 --randrepeat=0 --ioengine=libaio \
        --name=pages --filename=/dev/vda --offset=0 --rw=randwrite --bs=4k --iodepth=16 --direct=1 \
        --name=mixed --filename=$mixed --offset="${size}m" --rw=randwrite --bsrange=4k-128k --iodepth=8 --direct=1 --fsync=16 \
        --name=cached --filename=/dev/vda --offset="$((2 * size))m" --rw=write --bs=256k --iodepth=1 --direct=0 --fsync=8
}

mkdir -p /tmp
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
wait $writer
stop_stream
! dmesg | grep -E 'I/O error|BUG:|Oops|Call Trace|blocked for more than' || exit 1
[ ! -e /tmp/wrong ]
