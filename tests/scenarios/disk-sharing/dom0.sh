# A disk belongs to one guest: another guest, QEMU's tools and mounts cannot use it at the same
# time, and the daemon refuses a target that another program uses. Readers can share a disk.
# guests:
# soak: pv
# limit: 150
. /lab/dom0/lib.sh

modprobe -r brd
modprobe brd rd_nr=2 rd_size=8192
clean_up() {
    umount volume || true
    kill "$(cat nbd.pid)" || true
    losetup -D
    rmmod brd
}
trap 'clean_up 2>/dev/null' EXIT
for number in 0 1; do
    mke2fs -q -t ext4 /dev/ram$number
done
mkdir volume
qemu-img create -q -f qcow2 base.qcow2 8M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
make_disk "$PWD/disk.img" 8
make_disk "$PWD/held.img" 8
make_initrd initrd /lab/scenarios/disk-sharing/guest.sh

# fails REASON PROGRAM…: checks that the program fails and prints the reason.
fails() {
    local reason=$1
    shift
    ! "$@" >says 2>&1 || fail "$* succeeded"
    grep -qF "$reason" says || fail "$* does not say '$reason': $(cat says)"
}

# refused REASON DISK…: checks that xl create fails with these disks, and that the daemon logs the
# reason.
refused() {
    local reason=$1 logged
    shift
    logged=$(wc -c <$daemon_log)
    ! start_guest refused /lab/guest/initrd "$@" 2>says || fail "xl created a guest with $*"
    tail -c "+$((logged + 1))" $daemon_log | grep -qF "$reason" ||
        fail "the log does not say '$reason' of $*: $(tail -n 3 $daemon_log)"
}

name=$GUEST-sharing
start_guest "$name" "$PWD/initrd" "$PWD/disk.qcow2" "$PWD/disk.img" /dev/ram0 ||
    fail "xl could not create the guest"
wait_console "$name" 40 'lab: ready'
owner=$domid

# QEMU's tools print their own messages; -U allows `qemu-img info` to read a locked image.
for command in 'resize -q disk.qcow2 16M' 'snapshot -c now disk.qcow2' 'resize -q -f raw disk.img 16M' \
    'resize -q base.qcow2 16M' 'commit -q disk.qcow2'; do
    # shellcheck disable=SC2086 # a command is words
    fails 'Failed to get "write" lock' qemu-img $command
done
fails 'Failed to get "write" lock' qemu-io -f raw -c 'write 0 512' disk.img
fails 'Failed to get shared "write" lock' qemu-img info disk.qcow2
qemu-img info -U disk.qcow2 >/dev/null || fail "qemu-img info -U cannot read the image"
qemu-img info base.qcow2 >/dev/null || fail "qemu-img info cannot read the backing file"

# Dom0's mounts and another guest cannot use the disks.
fails 'ram0' mount /dev/ram0 volume
! grep -q ' /[^ ]*/volume ' /proc/mounts || fail "the guest's disk is mounted"
for disk in "$PWD/disk.qcow2" "$PWD/disk.img" /dev/ram0 "$PWD/disk.img:r" /dev/ram0:r; do
    refused "domain $owner uses it for xvd" "$disk"
done
refused "domain $owner uses it for xvda; only a file that nobody writes can be shared" "$PWD/base.qcow2"

# The daemon refuses targets that other programs use.
mount /dev/ram1 volume
refused 'it is mounted, or part of a volume' /dev/ram1
umount volume
qemu-nbd --fork --pid-file="$PWD/nbd.pid" -k "$PWD/socket" -f raw held.img
refused 'in use by another program: Failed to get ' "$PWD/held.img"
grep -qF "fuser -v \"$PWD/held.img\"" $daemon_log ||
    fail "the log does not say how to find the program"
kill "$(cat nbd.pid)"
timeout 20 tail --pid="$(cat nbd.pid)" -s 0.1 -f /dev/null || fail "qemu-nbd did not end"
loop=$(losetup -f --show held.img)
refused "it is behind $loop" "$PWD/held.img"
refused "it is behind $loop" "$PWD/held.img:r"
losetup -d "$loop"

tell_guest "$owner" go
domid=$owner
end_guest "$name" 40
check_nothing_mapped

# After the guest's end every program can use the disks. Readers can share them, with a loop device
# too.
qemu-img resize -q disk.qcow2 16M
qemu-img snapshot -c now disk.qcow2
mke2fs -q -F -t ext4 /dev/ram0
mount /dev/ram0 volume
umount volume
loop=$(losetup -r -f --show disk.img)
readers=
for number in 1 2; do
    start_guest "$GUEST-reads-$number" "$PWD/initrd" "$PWD/disk.img:r" "$PWD/base.qcow2:r" /dev/ram1:r ||
        fail "xl could not create the guest that reads"
    wait_console "$GUEST-reads-$number" 40 'lab: ready'
    readers="$readers $domid"
done
qemu-io -r -f raw -c 'read 0 512' disk.img >/dev/null || fail "qemu-io cannot read the image"
fails 'Failed to get "write" lock' qemu-io -f raw -c 'write 0 512' disk.img
fails 'ram1' mount /dev/ram1 volume
for domid in $readers; do
    tell_guest "$domid" go
done
for number in 1 2; do
    domid=$(xl domid "$GUEST-reads-$number")
    end_guest "$GUEST-reads-$number" 40
done
losetup -d "$loop"
check_nothing_mapped
