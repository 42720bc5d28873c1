# A process of root holds a secret; an unprivileged process drives the disk and knows a frame
# number.
device=$(basename /sys/bus/xen/devices/virtio_disk-*)
wait_for "the disk /dev/vda" 20 test -b /dev/vda
echo "$device" >/sys/bus/xen/drivers/virtio_msg_xen/unbind
rmmod virtio_msg_xen
for module in xen-evtchn xen-gntalloc xenfs; do
    load $module
done

# The process can open these devices and no others of /dev/xen.
mkdir -p /etc
echo 'driver:x:1000:1000::/:/bin/sh' >/etc/passwd
for name in evtchn gntalloc xenbus; do
    chown 1000 "/dev/xen/$name"
done

hold_secret
read -r frame

# attempt WORD OPTION…: runs the process, and prints its message and the checksum of its data under
# WORD.
attempt() {
    word=$1
    shift
    su driver -c "/bin/hostile-driver $* device/$(echo "$device" | tr - /) $frame" \
        </dev/null >/tmp/got 2>/tmp/says || true
    echo "lab: $word-says $(grep '^hostile-driver: ' /tmp/says)"
    echo "lab: $word-got $(sha256sum </tmp/got)"
}

attempt accepting --accept-platform
read -r _
attempt ignoring
read -r _
