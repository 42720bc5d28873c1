# The module is unloaded and loaded again: it leaves no grant behind, and the disk comes back. Of a
# queue's ring, the device is granted its own area for writing and nothing else.
# limit: 90
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 8
make_initrd initrd /lab/scenarios/reload/guest.sh
start_guest "$GUEST-reload" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
for turn in 1 2 3; do
    wait_console "$GUEST-reload" 40 "lab: loaded $turn"
    # Of flags, 4 is: granted read-only; 16: mapped for writing. A ring of 512 entries takes three
    # pages that the driver writes and two that the device does; the message page and 64 of the pool
    # are mapped as well.
    mapped_grants "$domid" >mapped
    flags=$(awk '{ print $NF }' mapped | sort | uniq -c | xargs)
    [ "$flags" = '3 0x0d 67 0x19' ] || fail "mapped pages by their flags: $flags"
    tell_guest "$domid" go
    wait_console "$GUEST-reload" 40 "lab: unloaded $turn"
    check_nothing_mapped "$domid"
    tell_guest "$domid" go
done
end_guest "$GUEST-reload" 40
check_nothing_mapped
[ "$(guest_said "$GUEST-reload" disk)" = "$(sha256sum <disk.img)" ] || fail "the image is not what the guest wrote"
