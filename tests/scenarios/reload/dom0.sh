# The guest unloads the module and loads it again: no grant is left, and the disk works again. The
# driver grants a queue's device area writable, and the other areas read-only.
# guests: pv
# soak: pvh
# limit: 90
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 8
make_initrd initrd /lab/scenarios/reload/guest.sh
start_guest "$GUEST-reload" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
for turn in 1 2 3; do
    wait_console "$GUEST-reload" 40 "lab: loaded $turn"
    # Flag 4: granted read-only; flag 16: mapped writable. A ring of 512 entries has three pages
    # that the driver writes and two that the device writes. The message page and 64 pages of the
    # pool are also mapped.
    mapped_grants "$domid" >mapped
    flags=$(awk '{ print $NF }' mapped | sort | uniq -c | xargs)
    [ "$flags" = '3 0x0d 67 0x19' ] ||
        fail "the counts of mapped pages by flags are $flags, not 3 0x0d 67 0x19"
    tell_guest "$domid" go
    wait_console "$GUEST-reload" 40 "lab: unloaded $turn"
    check_nothing_mapped "$domid"
    tell_guest "$domid" go
done
end_guest "$GUEST-reload" 40
check_nothing_mapped
[ "$(guest_said "$GUEST-reload" disk)" = "$(sha256sum <disk.img)" ] ||
    fail "the image does not hold the data that the guest wrote"
