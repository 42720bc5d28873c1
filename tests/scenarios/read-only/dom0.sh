# A guest can read a disk with access=r, but not write to it.
# guests: pvh
# limit: 60
. /lab/dom0/lib.sh

head -c 4M /dev/urandom >disk.img
before=$(sha256sum <disk.img)
make_initrd initrd /lab/scenarios/read-only/guest.sh
run_guest 50 "$GUEST-read-only" "$PWD/initrd" "$PWD/disk.img:r"
check_nothing_mapped

seen=$(guest_said "$GUEST-read-only" disk)
[ "$seen" = "$before" ] || fail "the guest read data with hash $seen, the image has $before"
[ "$(sha256sum <disk.img)" = "$before" ] || fail "the image changed"
