# xl destroy in the middle of writes: no zombie, nothing mapped, and the next guest is served.
# guests: pv
# soak: pvh
# limit: 90
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 32
make_initrd writing /lab/scenarios/destroy-while-writing/guest.sh
start_guest "$GUEST-destroyed" "$PWD/writing" "$PWD/disk.img" || fail "xl could not create the guest"
# Nobody else has the image, not even an HVM guest's QEMU, before the guest's kernel unplugs what
# QEMU emulates.
[ "$(opened_by "$PWD/disk.img")" = xen-virtiod ] ||
    fail "the image is open in: $(opened_by "$PWD/disk.img")"
wait_console "$GUEST-destroyed" 40 'lab: writing 3'
xl destroy "$domid"
wait_gone "$domid" 15
check_nothing_mapped

# Another guest, on the same image.
make_initrd reading /lab/scenarios/destroy-while-writing/next-guest.sh
run_guest 40 "$GUEST-next" "$PWD/reading" "$PWD/disk.img"
[ "$(guest_said "$GUEST-next" disk)" = "$(sha256sum <disk.img)" ] || fail "the next guest read wrongly"
check_nothing_mapped
