# The shared pool: a device begins with 64 pages, and the driver adds pages while requests find the
# pool full, up to the module's parameter. The driver grants buffers that do not fit. A reset of the
# device revokes all of the pool.
# guests: pv
# limit: 90
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 16
make_initrd initrd /lab/scenarios/pool/guest.sh
name=$GUEST-pool
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: reset'
# The message page stays mapped: the device was reset and is still connected.
[ "$(mapped_grants "$domid" | wc -l)" = 1 ] ||
    fail "Xen has more mapped than the message page: $(mapped_grants "$domid")"
tell_guest "$domid" go
end_guest "$name" 60
check_nothing_mapped
[ "$(guest_said "$name" disk)" = "$(sha256sum <disk.img)" ] ||
    fail "the image does not hold the data that the guest wrote"
