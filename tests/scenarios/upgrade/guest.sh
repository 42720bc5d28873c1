# Writes and verifies the disk, with several requests in flight, until a line arrives. After the
# line "rest" the disk is lost while it is idle; when another line arrives, binds the device again
# and verifies the disk anew.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
drivers=/sys/bus/xen/drivers/virtio_msg_xen

# verify MIB: writes new data to a mebibyte of the disk and reads it back.
verify() {
    dd if=/dev/urandom of="/tmp/$1" bs=64k count=16 2>/dev/null
    dd if="/tmp/$1" of=/dev/vda bs=256k seek="$1M" oflag=direct,seek_bytes conv=notrunc 2>/dev/null &&
        dd if=/dev/vda bs=256k skip="$1M" count=4 iflag=direct,skip_bytes 2>/dev/null | cmp -s - "/tmp/$1"
}

# all_verified: verifies four parts at once.
all_verified() {
    good=yes
    jobs=
    for area in 0 1 2 3; do
        verify $area &
        jobs="$jobs $!"
    done
    for job in $jobs; do
        wait "$job" || good=no
    done
    [ $good = yes ]
}

# rounds: verifies the disk until the file /tmp/stop exists.
rounds() {
    round=0
    while [ ! -e /tmp/stop ]; do
        all_verified || touch /tmp/wrong
        round=$((round + 1))
        echo "lab: round $round"
    done
}

lost() {
    dmesg | grep -q 'virtio_disk-51712: .*the backend left'
}

rounds &
writers=$!
read -r line
touch /tmp/stop
wait $writers
[ ! -e /tmp/wrong ]
if [ "$line" = rest ]; then
    echo "lab: resting"
    wait_for "the disk to be lost" 60 lost
    echo "lab: lost"
    read -r _
    echo virtio_disk-51712 >$drivers/unbind
    echo virtio_disk-51712 >$drivers/bind
    wait_for "the disk /dev/vda" 20 test -b /dev/vda
    all_verified
    echo "lab: anew"
    read -r line
fi
[ "$line" = stop ]
! dmesg | grep -E 'I/O error|BUG:|Oops|Call Trace|blocked for more than' || exit 1
