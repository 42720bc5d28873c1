# What a guest that is measured does with its disks.

# known SERVER-TARGET NAME: the disk that a driver (by its name) or virtio (by its serial number)
# found as NAME is /dev/bench/SERVER-TARGET.
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

# find_disks: waits for those that Dom0 named, and mounts the one with the programs.
find_disks() {
    mkdir -p /dev/bench
    while read -r disk name; do
        wait_for "the disk $disk, which is $name" 20 known "$disk" "$name"
    done </jobs/disks
    # Built into the kernel that most guests have.
    for module in crc32c_generic ext4; do
        [ ! -e /lib/modules/$module.order ] || load $module
    done
    mount -t ext4 -o ro /dev/bench/programs /mnt
    mkdir -p /tmp/results/rounds /tmp/results/figures
}

# leave: leaves what was found in /tmp/results on the disk for it.
leave() {
    tar -c -C /tmp/results . | dd of=/dev/bench/results bs=64k conv=fsync 2>/dev/null
}

# tool NAME ARGUMENT…: runs a program that measures, of the disk that has them.
tool() {
    local name=$1
    shift
    LD_LIBRARY_PATH=/mnt/lib "/mnt/bin/$name" "$@"
}

# do_works NAME DISK [PREFIX]: each of the few works, once, as those of the server and target NAME.
do_works() {
    while read -r work options; do
        # shellcheck disable=SC2086 # options are words
        tool fio --eta=never --output-format=json --output="/tmp/results/rounds/${3:-}$work@$1.json" \
            --name="$work@$1" --filename="$2" --ioengine=libaio --direct=1 --thread=1 --size=64m \
            --time_based=1 --ramp_time=200ms $options
    done </jobs/few
}

echo "lab: kernel Linux $(uname -r), $(nproc) virtual processor(s), $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"
