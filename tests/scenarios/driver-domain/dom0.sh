# An unprivileged driver domain serves guests: their data passes, it has opened nothing of the
# guest's but grants, and the hypervisor would refuse it more. Guests end and are destroyed as with
# Dom0, and when the driver domain itself is destroyed, the others go on.
# guests: pv
# limit: 150
. /lab/dom0/lib.sh

# no_trace DOMID NAME: of a guest that is gone nothing is left, and xl did not have to wait for it.
no_trace() {
    wait_gone "$1" 20
    ! xenstore-exists "/local/domain/$backend/backend/virtio_disk/$1" ||
        fail "the directory of guest $1 is left: $(xenstore-ls "/local/domain/$backend/backend")"
    ! grep -E 'timed out|removed|rror' "$2" || fail "xl complains of the guest $1"
}

make_initrd backend-initrd /lab/scenarios/driver-domain/backend.sh /lab/guest/driver-domain.cpio
make_initrd guest-initrd /lab/scenarios/driver-domain/guest.sh
make_initrd writing-initrd /lab/scenarios/driver-domain/writing.sh
start_example driver-domain driver-domain "$PWD/backend-initrd" ||
    fail "xl could not create the driver domain"
backend=$domid
# On Dom0's processor, so that a guest and its backend need not take turns on one.
xl vcpu-pin -i driver-domain 0 0
wait_console driver-domain 40 'lab: serving'

# The guest's disk is the driver domain's, and Dom0 knows nothing of it.
start_example blk-driver-domain served "$PWD/guest-initrd" || fail "xl could not create a guest"
wait_console served 40 'lab: written'
! xen-virtiod stat --json | grep "\"domid\":$domid," || fail "Dom0's xen-virtiod serves the guest"

# What the guest wrote to its console stands in a page of its own. Dom0 may map the page as it
# likes, the driver domain may not, even where its own kernel does not keep it from asking.
frame=$(xenstore-read "/local/domain/$domid/console/ring-ref")
foreign-map "$domid" "$frame" >page || fail "Dom0 cannot map the page of the guest's console"
grep -aq 'lab: written' page || fail "the page of the guest's console is not what Dom0 mapped"
tell_guest "$backend" "$domid $frame"
wait_console driver-domain 20 'lab: tried'
guest_said driver-domain refusal | grep 'the hypervisor refuses frame .*: EPERM' ||
    fail "the driver domain says: $(guest_said driver-domain refusal)"
[ "$(guest_said driver-domain opened)" = "/dev/xen/evtchn /dev/xen/gntdev /dev/xen/xenbus" ] ||
    fail "xen-virtiod has opened: $(guest_said driver-domain opened)"
guest=$domid
end_guest served 40
no_trace "$guest" /var/log/xen/xl-served.log
tell_guest "$backend" gone
wait_console driver-domain 20 'lab: disk'
[ -z "$(guest_said driver-domain mapped)" ] || fail "mapped: $(guest_said driver-domain mapped)"
[ "$(guest_said served found)" = "$(guest_said driver-domain image)" ] ||
    fail "the guest found something else than the driver domain had"
[ "$(guest_said served disk)" = "$(guest_said driver-domain disk)" ] ||
    fail "the driver domain has something else than the guest wrote"

# A guest destroyed in the middle of writes.
start_example blk-driver-domain destroyed "$PWD/writing-initrd" || fail "xl could not create a guest"
wait_console destroyed 40 'lab: writing 3'
xl destroy "$domid" 2>xl-says || fail "xl destroy: $(cat xl-says)"
no_trace "$domid" xl-says

# The driver domain destroyed in the middle of writes: the guest loses its disk and nothing else.
start_example blk-driver-domain bereft "$PWD/writing-initrd" || fail "xl could not create a guest"
wait_console bereft 40 'lab: writing 3'
xl destroy "$backend" || fail "xl could not destroy the driver domain"
wait_gone "$backend" 20
wait_console bereft 20 'the backend left'
tell_guest "$domid" 'still there?'
wait_console bereft 20 'lab: still there'
check_nothing_mapped "$domid"
xl destroy "$domid" 2>xl-says || fail "xl destroy: $(cat xl-says)"
wait_gone "$domid" 20
