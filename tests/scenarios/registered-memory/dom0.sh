# Direct I/O from and to a guest's pages. Linux 6.12 registers the mapped pages of a guest with
# io_uring, so that a transfer need not look each one up; Linux 6.1 refuses that, and the daemon
# does without. Dom0 has one kernel, so a driver domain, which has the guest's, serves the guest. In
# a PV domain the kernel must not hold mapped pages, so the driver domain is PVH.
# guests:
# soak: pv pv-bookworm
# limit: 150
. /lab/dom0/lib.sh

expected=1
[ "${KERNEL:-}" != bookworm ] || expected=0
truncate -s 8M disk.img
make_initrd backend-initrd /lab/scenarios/registered-memory/backend.sh /lab/guest/driver-domain.cpio
make_initrd guest-initrd /lab/scenarios/registered-memory/guest.sh

# The driver domain's disk is the store of the guest's, because direct I/O needs a block device. As
# it is untrusted, the driver domain's driver copies the guest's pages, which only the guest could
# grant to Dom0.
start_example driver-domain driver-domain "$PWD/backend-initrd" 's|^type = .*|type = "pvh"|' \
    "\$a disk = [\"format=raw,vdev=xvda,access=rw,untrusted,backendtype=standalone,specification=virtio,target=$PWD/disk.img\"]" ||
    fail "xl could not create the driver domain"
backend=$domid
xl vcpu-pin -i driver-domain 0 0
wait_console driver-domain 60 'lab: serving'

start_example blk-driver-domain direct "$PWD/guest-initrd" \
    's|target=/srv/disk.img|direct-io-safe,target=/dev/vda|' || fail "xl could not create a guest"
end_guest direct 60
tell_guest "$backend" gone
domid=$backend
end_guest driver-domain 40

[ "$(guest_said direct disk)" = "$(sha256sum <disk.img)" ] ||
    fail "the image does not hold the data that the guest wrote"
kernel=$(guest_said driver-domain kernel)
[ "$(guest_said driver-domain registers)" = $expected ] ||
    fail "Linux $kernel registers mapped grants: $(guest_said driver-domain registers), not $expected"
[ "$(guest_said driver-domain refuses)" = $((1 - expected)) ] ||
    fail "Linux $kernel refuses mapped grants: $(guest_said driver-domain refuses)"
