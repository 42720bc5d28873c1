# The shared pool: a device begins with 64 pages and gets more while it lacks some, as far as the
# module's parameter allows; what finds no room is granted. A reset of the device takes all of it
# back.
# guests: pv
# limit: 90
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 16
make_initrd initrd /lab/scenarios/pool/guest.sh
name=$GUEST-pool
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: reset'
# The message page stays: the device was reset, and is connected.
[ "$(mapped_grants "$domid" | wc -l)" = 1 ] ||
    fail "Xen has more mapped than the message page: $(mapped_grants "$domid")"
tell_guest "$domid" go
end_guest "$name" 60
check_nothing_mapped
[ "$(guest_said "$name" disk)" = "$(sha256sum <disk.img)" ] || fail "the image is not what the guest wrote"
