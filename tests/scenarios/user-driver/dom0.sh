# A process without privilege drives a disk, with no kernel module: what it writes stands in the image,
# what it reads is the image, and it grants no page but its own.
# limit: 90
. /lab/dom0/lib.sh

head -c 1M /dev/urandom >disk.img
before=$(sha256sum <disk.img)
make_initrd initrd /lab/scenarios/user-driver/guest.sh
run_guest 70 "$GUEST-user-driver" "$PWD/initrd" "$PWD/disk.img"
check_nothing_mapped
[ "$(guest_said "$GUEST-user-driver" read)" = "$before" ] || fail "it read something else"
[ "$(guest_said "$GUEST-user-driver" written)" = "$(sha256sum <disk.img)" ] ||
    fail "the image is not what it wrote"
