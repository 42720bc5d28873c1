# Reads the start of the disk on one processor, and writes its middle on the other, which has
# another queue.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
test -d /sys/block/vda/mq/1 || {
    echo "lab: the disk has one queue"
    exit 1
}

# reads: sets $reads to the number of reads that have ended.
reads() {
    read -r reads _ </sys/block/vda/stat
}

read_on() {
    while dd if=/dev/vda of=/dev/null bs=4k count=256 iflag=direct 2>/dev/null; do
        true
    done
}

# measure KIND NUMBER SIZE MIB: writes NUMBER times SIZE bytes from that MiB on, and prints the
# number of reads that have ended meanwhile.
measure() {
    reads
    local before=$reads
    taskset 2 dd if=/dev/zero of=/dev/vda bs="$3" count="$2" seek="$4M" oflag=direct,seek_bytes \
        conv=notrunc 2>/dev/null
    reads
    echo "lab: $1 $((reads - before)) $2"
}

taskset -p 1 $$ >/dev/null
echo "lab: ready"
read -r _
read_on &
reader=$!
# The cache has what is read before the first write begins.
reads
first=$reads
cached() {
    reads
    test "$reads" -ge $((first + 512))
}
wait_for "the page cache to have what is read" 30 cached
# Each write begins and ends within a block of the file system, and its last block is not in the
# cache.
measure cold 5 4608 8
read -r _
measure throttled 4 262144 16
kill $reader
