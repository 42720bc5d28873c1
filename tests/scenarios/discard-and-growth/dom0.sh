# A guest's discards free storage in Dom0's file system, and the daemon notifies the running guest
# when a disk grows: a file that the guest wrote, and a block device that it never used.
# guests: pvh
# limit: 90
. /lab/dom0/lib.sh

# allocated FILE: prints the bytes of storage that a file occupies.
allocated() {
    echo $(($(stat -c '%b' "$1") * 512))
}

make_disk "$PWD/disk.img" 16
truncate -s 4M volume.img
loop=$(losetup -f --show volume.img)
trap 'losetup -d "$loop"' EXIT
make_initrd initrd /lab/scenarios/discard-and-growth/guest.sh
name=$GUEST-discard
start_guest "$name" "$PWD/initrd" "$PWD/disk.img:discard" "$loop" || fail "xl could not create the guest"

wait_console "$name" 40 'lab: written'
sync
before=$(allocated disk.img)
[ "$before" -ge $((16 << 20)) ] || fail "the guest wrote 16 MiB, the file takes $before bytes"
tell_guest "$domid" go

wait_console "$name" 20 'lab: discarded'
after=$(allocated disk.img)
[ $((before - after)) -ge $((8 << 20)) ] ||
    fail "8 MiB discarded: $before bytes before, $after after"
[ "$(stat -c %s disk.img)" = $((16 << 20)) ] || fail "the image's size changed"

truncate -s 64M disk.img
truncate -s 8M volume.img
losetup -c "$loop"
end_guest "$name" 40
check_nothing_mapped
[ "$(guest_said "$name" end)" = "$(tail -c 1M disk.img | sha256sum)" ] ||
    fail "the image lacks the data that the guest wrote at the new end"
[ "$(guest_said "$name" disk)" = "$(head -c 16M disk.img | sha256sum)" ] ||
    fail "the guest reads data that the image does not hold"
