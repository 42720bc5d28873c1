# The options of a disk line, with the example blk-options.cfg: a qcow2 image with a backing file, a
# disk larger than 2 TiB, a block device with blocks of 4096 bytes, a queue for each of two CPUs.
# The daemon refuses a CD-ROM and an image with a backing file in another directory, and logs the
# reason.
# guests: pv
# limit: 120
. /lab/dom0/lib.sh

# Dom0's root file system does not support files of that size.
large=$(mktemp /run/large.XXXXXX)
truncate -s 3T "$large"
head -c 2M /dev/urandom >base.img
before=$(sha256sum <base.img)
qemu-img create -q -f qcow2 -b base.img -F raw disk.qcow2 16M
truncate -s 4M volume.img
loop=$(losetup -f --show -b 4096 volume.img)
trap 'rm "$large"; losetup -d "$loop"' EXIT

# example NAME INITRD SED…: starts a guest with the example, with this scenario's files.
example() {
    local guest=$1 initrd=$2
    shift 2
    start_example blk-options "$guest" "$initrd" "s|/lab/files/large.img|$large|" \
        "s|/lab/files|$PWD|" "s|/dev/vg/volume|$loop|" "$@"
}

# refused REASON SED…: checks that xl create fails, and that the daemon logs the reason.
refused() {
    local reason=$1
    shift
    ! example refused /lab/guest/initrd "$@" 2>xl-says || fail "xl created a guest: $*"
    grep -qF "$reason" $daemon_log ||
        fail "the log does not say '$reason': $(tail -n 3 $daemon_log)"
    [ "$(xl list | wc -l)" = 2 ] || fail "xl create left a domain: $(xl list)"
}

refused 'a cdrom cannot be served: only devtype=disk can' 's/vdev=xvda,access=rw/&,devtype=cdrom/'
qemu-img create -q -f qcow2 -b /etc/passwd -F raw stranger.qcow2
refused 'its backing file "/etc/passwd" is not a file in' 's/disk.qcow2/stranger.qcow2/'

make_initrd initrd /lab/scenarios/disk-options/guest.sh
name=pv-disk-options
example $name "$PWD/initrd" || fail "xl could not create the guest"
# Writes past the block device's page cache have already reached the file behind it.
wait_console $name 60 "lab: wrote the volume"
in_time=$(sha256sum <volume.img)
tell_guest "$domid" go
end_guest $name 60
check_nothing_mapped
[ "$(guest_said $name volume)" = "$in_time" ] ||
    fail "the file behind the volume lacked the guest's data, which was in Dom0's page cache"

# same WHAT KEY: checks that standard input has the hash that the guest printed under KEY.
same() {
    local here
    here=$(sha256sum)
    [ "$(guest_said $name "$2")" = "$here" ] ||
        fail "$1: the hash is $here in Dom0 and $(guest_said $name "$2") in the guest"
}

qemu-img check -q disk.qcow2 ||
    fail "the guest left a damaged image: $(qemu-img check disk.qcow2 2>&1)"
qemu-img convert -O raw disk.qcow2 disk.img
same "the image" disk <disk.img
e2fsck -fn disk.img >fsck 2>&1 || fail "the file system in the image is damaged: $(cat fsck)"
[ "$(guest_said $name base)" = "$before" ] || fail "the guest did not read the backing file"
[ "$(sha256sum <base.img)" = "$before" ] || fail "the backing file changed"

# The two positions are 2^32 sectors apart: a 32-bit sector number would confuse them.
tebibyte=$((1 << 40))
dd if="$large" bs=1M count=2 iflag=skip_bytes skip=$((tebibyte / 2)) 2>/dev/null | same "0.5 TiB" low
dd if="$large" bs=1M count=2 iflag=skip_bytes skip=$((tebibyte * 5 / 2)) 2>/dev/null |
    same "2.5 TiB" high
[ "$(stat -c '%b' "$large")" -le $((5 << 11)) ] || fail "the large disk is no longer sparse"

same "the volume" volume <volume.img
