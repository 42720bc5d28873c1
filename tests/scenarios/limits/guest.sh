# The guest has six disks and event channels for four. Each disk allocates the channel that it needs
# before any disk allocates one for a queue, which works without.
found() {
    [ "$(ls -d /sys/block/vd* | wc -l)" = 4 ]
}

# said COUNT WORDS: checks that the kernel's log has at least COUNT lines with these words.
said() {
    [ "$(dmesg | grep -c "$2")" -ge "$1" ] || {
        echo "lab: fewer than $1 lines with '$2'"
        dmesg | grep virtio
        false
    }
}

wait_for "four disks" 30 found
said 2 'no event channel is free for messages'
# No channel is left for queues, which work without.
said 4 'no event channel for queue 0'

# Write the page cache to all disks at the same time.
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
for disk in /dev/vd?; do
    dd if=/tmp/data of="$disk" bs=1M conv=fsync 2>/dev/null &
done
wait
dmesg | grep -q 'grant references in a row are free'
! dmesg | grep -q 'I/O error' || exit 1
echo "lab: data $(sha256sum </tmp/data)"
echo "lab: disks $(for disk in /sys/block/vd*; do cat "$disk/serial" && echo; done | tr '\n' ' ')"
