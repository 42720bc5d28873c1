# `xl destroy` during writes leaves no zombie and no mapped grant, and the next guest's disk works.
# guests: pv
# soak: pvh
# limit: 90
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 32
make_initrd writing /lab/scenarios/destroy-while-writing/guest.sh
start_guest "$GUEST-destroyed" "$PWD/writing" "$PWD/disk.img" ||
    fail "xl could not create the guest"
# No other program has the image open: not even an HVM guest's QEMU, before the guest's kernel
# unplugs the emulated disks.
[ "$(opened_by "$PWD/disk.img")" = xen-virtiod ] ||
    fail "the image is open in: $(opened_by "$PWD/disk.img")"
wait_console "$GUEST-destroyed" 40 'lab: writing 3'
xl destroy "$domid"
wait_gone "$domid" 15
check_nothing_mapped

# The next guest uses the same image.
make_initrd reading /lab/scenarios/destroy-while-writing/next-guest.sh
run_guest 40 "$GUEST-next" "$PWD/reading" "$PWD/disk.img"
[ "$(guest_said "$GUEST-next" disk)" = "$(sha256sum <disk.img)" ] ||
    fail "the next guest read data that the image does not hold"
check_nothing_mapped
