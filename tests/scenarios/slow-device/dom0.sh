# A slow device, as the draft of virtio-msg permits it: the driver waits for the end of a reset,
# answers PING, works without optional features, and gives the device up when only the status
# reports that the device could not start.
# limit: 60
# guests: pv
. /lab/dom0/lib.sh

name=slow-device
device=
clean_up() {
    [ -z "$device" ] || kill "$device" 2>/dev/null || true
    restore_daemon
}
trap clean_up EXIT

stop_daemon
make_initrd initrd /lab/scenarios/slow-device/guest.sh
start_example net-pv $name "$PWD/initrd" 's|device1,|device4,|' ||
    fail "xl could not create the guest"
slow-device "$domid" 0 >said 2>&1 &
device=$!
end_guest $name 40
wait $device || fail "the device failed: $(cat said)"
device=

cat said
[ "$(grep -c 'reset complete after 3 questions' said)" -ge 1 ] ||
    fail "the driver did not wait for the end of a reset"
grep -qx 'PING 0x5eedcafe answered under 0xbeef' said || fail "the driver did not answer PING"
! grep 'not understood' said || fail "the driver sent a malformed message"
guest_said $name gone | grep -q 'device given up: .*DEVICE_NEEDS_RESET' ||
    fail "the guest's kernel says: $(guest_said $name gone)"
[ "$(guest_said $name status)" != '' ] || fail "the guest has no virtio device"
