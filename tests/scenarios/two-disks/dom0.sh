# One guest writes to two disks at the same time, and each image holds the data of its own disk.
# guests: pv
# limit: 60
. /lab/dom0/lib.sh

make_disk "$PWD/one.img" 8
make_disk "$PWD/two.img" 16
make_initrd initrd /lab/scenarios/two-disks/guest.sh
run_guest 50 "$GUEST-two-disks" "$PWD/initrd" "$PWD/one.img" "$PWD/two.img"
check_nothing_mapped

for disk in one two; do
    written=$(guest_said "$GUEST-two-disks" "$disk")
    [ "$written" = "$(sha256sum <$disk.img)" ] ||
        fail "$disk.img does not hold the data that the guest wrote"
done
! busybox cmp -s -n 8388608 one.img two.img || fail "both disks hold the same data"
