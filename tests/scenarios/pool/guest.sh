device=/sys/bus/xen/devices/virtio_disk-51712

# pool KEY: prints a counter of the pool.
pool() {
    sed -n "s/^$1 //p" $device/pool
}

# is NAME NUMBER VALUE: checks that the number has the value.
is() {
    [ "$2" = "$3" ] || {
        echo "lab: $1: $2, expected $3"
        cat $device/pool
        false
    }
}

# exercise: writes to all parts of the disk at once, and reads them again.
exercise() {
    head -c 4194304 /dev/urandom >/tmp/data
    for part in 0 1 2 3; do
        dd if=/tmp/data of=/dev/vda bs=1M seek=$((part * 4)) oflag=direct 2>/dev/null &
    done
    wait
    for part in 0 1 2 3; do
        dd if=/dev/vda bs=1M skip=$((part * 4)) count=4 iflag=direct 2>/dev/null | cmp - /tmp/data &&
            : >/tmp/same$part &
    done
    wait
    rm /tmp/same0 /tmp/same1 /tmp/same2 /tmp/same3
    is "pages in use" "$(pool in_use)" 0
}

# reload PARAMETER: loads the module again, with another size of pool.
reload() {
    echo virtio_disk-51712 >/sys/bus/xen/drivers/virtio_msg_xen/unbind
    rmmod virtio_msg_xen
    insmod /lib/modules/virtio_msg_xen.ko "$1"
    wait_for "the disk /dev/vda" 20 test -b /dev/vda
}

wait_for "the disk /dev/vda" 20 test -b /dev/vda
is "pages at first" "$(pool shared)" 64
exercise
# Buffers found the pool full, so it grew by them, to twice its size at least.
[ "$(pool fallbacks)" -gt 0 ]
[ "$(pool growths)" -ge 1 ]
[ "$(pool growths)" -le 3 ]
[ "$(pool shared)" -ge $((64 << $(pool growths))) ]
echo "lab: pool $(cat $device/pool | tr '\n' ' ')"
before=$(pool fallbacks)
dd if=/dev/vda of=/dev/null bs=4k count=100 iflag=direct 2>/dev/null
is "buffers granted for small reads" "$(($(pool fallbacks) - before))" 0

# An idle pool gives back what was added to it, and grows again.
shrunk() {
    [ "$(pool shared)" = 64 ]
}

wait_for "the pool to shrink" 60 shrunk
echo "lab: shrunk"
read -r _
exercise
[ "$(pool shared)" -gt 64 ]

# Unbinding the virtio driver resets the device.
disk=$(basename $device/virtio*)
echo "$disk" >/sys/bus/virtio/drivers/virtio_blk/unbind
is "pages after a reset" "$(pool shared)" 0
is "grants after a reset" "$(cat $device/grants_outstanding)" 0
echo "lab: reset"
read -r _
echo "$disk" >/sys/bus/virtio/drivers/virtio_blk/bind
wait_for "the disk /dev/vda" 20 test -b /dev/vda
is "pages for the next driver" "$(pool shared)" 64
exercise

# Requests of 1 MiB are larger than this pool, so they are granted.
reload pool=64
exercise
is "pages, with pool=64" "$(pool shared)" 64
[ "$(pool fallbacks)" -gt 0 ]

# Requests of 16 KiB, of which the pool holds 14 and the driver sends 32 at once, wait for each
# other. One of them is granted every 512 ms.
echo 16 >/sys/block/vda/queue/max_sectors_kb
before=$(pool fallbacks)
exercise
echo "lab: small requests: $((before)) $(cat $device/pool | tr '\n' ' ')"
[ "$(pool retries)" -gt 0 ]
[ $((($(pool fallbacks) - before) * 8)) -lt $((2 * 16 * 1024 / 16)) ]
! dmesg | grep "error.*vda" || exit 1

reload pool=0
exercise
is "pages, with pool=0" "$(pool shared)" 0
echo "lab: disk $(sha256sum </dev/vda)"
