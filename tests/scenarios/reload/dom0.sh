# The module is unloaded and loaded again: it leaves no grant behind, and the disk comes back.
# limit: 90
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 8
make_initrd initrd /lab/scenarios/reload/guest.sh
start_guest "$GUEST-reload" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
for turn in 1 2 3; do
    wait_console "$GUEST-reload" 40 "lab: unloaded $turn"
    check_nothing_mapped "$domid"
    tell_guest "$domid" go
done
end_guest "$GUEST-reload" 40
check_nothing_mapped
[ "$(guest_said "$GUEST-reload" disk)" = "$(sha256sum <disk.img)" ] || fail "the image is not what the guest wrote"
