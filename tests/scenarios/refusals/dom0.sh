# What a driver must not do is refused, and costs its device alone: to drive a device without
# VIRTIO_F_ACCESS_PLATFORM, and to give it guest-physical addresses.
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
    fail "the daemon's log does not say that the driver was refused: $(tail -n 3 $daemon_log)"

tell_guest "$domid" raw
wait_console "$name" 40 'lab: raw'
grep -q 'device needs reset: .*not granted memory: .* is not a grant' $daemon_log ||
    fail "the daemon's log does not say that an address was refused: $(tail -n 3 $daemon_log)"
xen-virtiod stat --json | grep -q '"needs_reset":"' || fail "stat knows of no reset: $(xen-virtiod stat)"
wait_console "$name" 20 'lab: exit'
[ "$(guest_said "$name" exit)" = 0 ] || fail "the guest's script ended badly"
# The kernel's requests are stuck with the device, so the guest cannot power off.
xl destroy "$domid"
wait_gone "$domid" 20
check_nothing_mapped
[ "$(sha256sum <disk.img)" = "$before" ] || fail "something was written to the disk"

# The daemon goes on.
make_initrd next-initrd /lab/scenarios/refusals/next.sh
run_guest 30 "$GUEST-after-refusals" "$PWD/next-initrd" "$PWD/disk.img"
