# The daemon refuses a driver that does not accept VIRTIO_F_ACCESS_PLATFORM, and a driver that gives
# guest-physical addresses. Only the driver's own device fails.
# guests: pvh
# limit: 90
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 8
before=$(sha256sum <disk.img)
make_initrd initrd /lab/scenarios/refusals/guest.sh
name=$GUEST-refusals
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
wait_console "$name" 40 'lab: platform'
guest_said "$name" platform | grep 'device refuses features' ||
    fail "the guest's kernel says: $(guest_said "$name" platform)"
grep -q 'FEATURES_OK refused: no VIRTIO_F_ACCESS_PLATFORM' $daemon_log ||
    fail "the daemon's log does not say that it refused the features: $(tail -n 3 $daemon_log)"

tell_guest "$domid" raw
wait_console "$name" 40 'lab: raw'
grep -q 'device needs reset: .*not granted memory: .* is not a grant' $daemon_log ||
    fail "the daemon's log does not say that it refused an address: $(tail -n 3 $daemon_log)"
xen-virtiod stat --json | grep -q '"needs_reset":"' ||
    fail "stat does not report that the device needs a reset: $(xen-virtiod stat)"
wait_console "$name" 20 'lab: exit'
[ "$(guest_said "$name" exit)" = 0 ] || fail "the guest's script failed"
# The device never completes the kernel's requests, so the guest cannot power off.
xl destroy "$domid"
wait_gone "$domid" 20
check_nothing_mapped
[ "$(sha256sum <disk.img)" = "$before" ] || fail "the image changed"

# The daemon still serves other guests.
make_initrd next-initrd /lab/scenarios/refusals/next.sh
run_guest 30 "$GUEST-after-refusals" "$PWD/next-initrd" "$PWD/disk.img"
