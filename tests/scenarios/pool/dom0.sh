# The shared pool: a device begins with 64 pages, and the driver adds pages while requests find the
# pool full, up to the module's parameter, and takes them back when the disk is idle. The driver
# grants buffers that do not fit, or makes small requests wait. A reset of the device revokes all of
# the pool.
# guests: pv
# limit: 150
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 16
make_initrd initrd /lab/scenarios/pool/guest.sh
name=$GUEST-pool
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
wait_console "$name" 90 'lab: shrunk'
# Beside the pool's 64 pages, only the message page and the rings stay mapped.
[ "$(mapped_grants "$domid" | wc -l)" -le 80 ] ||
    fail "Xen has more mapped than a pool of 64 pages: $(mapped_grants "$domid")"
tell_guest "$domid" go
wait_console "$name" 60 'lab: reset'
# The message page stays mapped: the device was reset and is still connected.
[ "$(mapped_grants "$domid" | wc -l)" = 1 ] ||
    fail "Xen has more mapped than the message page: $(mapped_grants "$domid")"
tell_guest "$domid" go
end_guest "$name" 60
check_nothing_mapped
[ "$(guest_said "$name" disk)" = "$(sha256sum <disk.img)" ] ||
    fail "the image does not hold the data that the guest wrote"
