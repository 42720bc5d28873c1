# Buffered writes to an image on ext4 wait for slow storage: for the rest of a block that is not in
# the page cache, or until fewer pages are dirty. Meanwhile another queue reads what the page cache
# has.
# guests: pv
# soak: pvh
# limit: 120
# needs: dmsetup
. /lab/dom0/lib.sh

# The number of reads that have to end during each slow write. A device that waits for the write
# answers one or two.
READS=10

dirty=/proc/sys/vm/dirty_bytes
clean_up() {
    # Without a limit in bytes, the one in percent applies.
    echo 20 >/proc/sys/vm/dirty_ratio
    umount volume
    tool dmsetup remove --retry slow
    rmmod brd
}
trap 'clean_up >/dev/null 2>&1' EXIT

mount_programs
modprobe -r brd
modprobe brd rd_nr=1 rd_size=65536
modprobe dm-delay
# The disk is fast until the image is there.
table() {
    echo "0 131072 delay /dev/ram0 0 $1 /dev/ram0 0 $2"
}
tool dmsetup create --noudevsync --noudevrules slow --table "$(table 0 0)"
store=/dev/$(tool dmsetup info -c --noheadings -o blkdevname slow)
mke2fs -q -t ext4 -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 "$store"
mkdir volume
mount -t ext4 "$store" volume
head -c 32M /dev/urandom >volume/disk.img
sync
tool dmsetup suspend slow
tool dmsetup reload slow --table "$(table 1000 500)"
tool dmsetup resume slow

name=$GUEST-storage-throttled
make_initrd initrd /lab/scenarios/storage-throttled/guest.sh
start_example "blk-$GUEST" "$name" "$PWD/initrd" 's|^vcpus = .*|vcpus = 2|' \
    "s|target=[^\"]*|target=$PWD/volume/disk.img|" || fail "xl could not create the guest"
wait_console "$name" 40 'lab: ready'
echo 3 >/proc/sys/vm/drop_caches
tell_guest "$domid" cold
wait_console "$name" 40 'lab: cold'
echo $((256 << 10)) >$dirty
tell_guest "$domid" throttled
wait_console "$name" 40 'lab: throttled'
echo 20 >/proc/sys/vm/dirty_ratio
end_guest "$name" 30
check_nothing_mapped

# check KIND: compares the reads during the guest's slow writes of this kind with the number.
check() {
    local counts reads writes
    counts=$(guest_said "$name" "$1")
    reads=${counts% *} writes=${counts#* }
    echo "$1: $reads reads during $writes writes"
    [ "$reads" -ge $((READS * writes)) ] ||
        fail "$1: only $reads reads ended during $writes slow writes"
}
check cold
check throttled
