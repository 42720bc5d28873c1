# Functions for measured guests and their disks.

# known SERVER-TARGET NAME: links /dev/bench/SERVER-TARGET to the disk NAME: a device node's name,
# or a virtio disk's serial number. Fails if the disk does not exist yet.
known() {
    if [ -b "/dev/$2" ]; then
        ln -s "/dev/$2" "/dev/bench/$1"
        return
    fi
    for serial in /sys/block/vd*/serial; do
        if [ "$(cat "$serial")" = "$2" ]; then
            serial=${serial%/serial}
            ln -s "/dev/${serial##*/}" "/dev/bench/$1"
            return
        fi
    done
    return 1
}

# find_disks: waits for the disks that Dom0 named, and mounts the one with the programs.
find_disks() {
    mkdir -p /dev/bench
    while read -r disk name; do
        wait_for "the disk $disk, which is $name" 20 known "$disk" "$name"
    done </jobs/disks
    # The default kernel has these built in, and no lists of them.
    for module in crc32c_generic ext4; do
        [ ! -e /lib/modules/$module.order ] || load $module
    done
    mount -t ext4 -o ro /dev/bench/programs /mnt
    mkdir -p /tmp/results/rounds /tmp/results/figures
}

# leave: writes an archive of /tmp/results to the disk for results.
leave() {
    tar -c -C /tmp/results . | dd of=/dev/bench/results bs=64k conv=fsync 2>/dev/null
}

# tool NAME ARGUMENT…: runs a measuring program from the disk with the programs.
tool() {
    local name=$1
    shift
    LD_LIBRARY_PATH=/mnt/lib "/mnt/bin/$name" "$@"
}

# find_close: writes the comparisons that need more rounds to /tmp/close.
find_close() {
    find /tmp/results/rounds /tmp/results/figures -type f -exec awk -f /jobs/close.awk {} + >/tmp/close
    echo "lab: close $(tr '\n' ' ' </tmp/close)"
}

# do_works NAME DISK [PREFIX]: does each of the few works once on DISK, and stores the results under
# the server and target NAME.
do_works() {
    while read -r work options; do
        # shellcheck disable=SC2086 # options are words
        tool fio --eta=never --output-format=json --output="/tmp/results/rounds/${3:-}$work@$1.json" \
            --name="$work@$1" --filename="$2" --ioengine=libaio --direct=1 --thread=1 --size=64m \
            --time_based=1 --ramp_time=200ms $options
    done </jobs/few
}

echo "lab: kernel Linux $(uname -r), $(nproc) virtual processor(s), $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"
