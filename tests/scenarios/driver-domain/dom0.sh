# An unprivileged driver domain serves guests' devices. Their data is right, the daemon uses only
# grants, and the hypervisor refuses it any other page. Its daemon and its processes can be killed,
# and a guest saved and restored, while the guest writes and verifies its disk. Guests can end and
# be destroyed as with a backend in Dom0, and the destruction of the driver domain costs a guest
# only its devices.
# guests:
# soak: pv
# limit: 240
. /lab/dom0/lib.sh

# no_trace DOMID LOG: checks that nothing of an ended guest is left, and that xl's output LOG has no
# error and no timeout.
no_trace() {
    wait_gone "$1" 20
    ! xenstore-exists "/local/domain/$backend/backend/virtio_disk/$1" ||
        fail "guest $1 has a backend directory: $(xenstore-ls "/local/domain/$backend/backend")"
    ! grep -E 'timed out|removed|rror' "$2" || fail "xl printed an error about the guest $1"
}

make_initrd backend-initrd /lab/scenarios/driver-domain/backend.sh /lab/guest/driver-domain.cpio
make_initrd guest-initrd /lab/scenarios/driver-domain/guest.sh
make_initrd verified-initrd /lab/scenarios/upgrade/guest.sh
make_initrd writing-initrd /lab/scenarios/driver-domain/writing.sh
start_example driver-domain driver-domain "$PWD/backend-initrd" ||
    fail "xl could not create the driver domain"
backend=$domid
# On Dom0's processor, so that a guest and its backend do not compete for one.
xl vcpu-pin -i driver-domain 0 0
wait_console driver-domain 40 'lab: serving'

# The driver domain serves the guest's disk; Dom0's daemon has no device for the guest.
start_example blk-driver-domain served "$PWD/guest-initrd" || fail "xl could not create a guest"
wait_console served 40 'lab: written'
! xen-virtiod stat --json | grep "\"domid\":$domid," || fail "Dom0's xen-virtiod serves the guest"

# The guest's console output is in a page of the guest. Dom0 may map any page of the guest. The
# hypervisor refuses this to the driver domain, even if the driver domain's kernel passes on the
# call.
frame=$(xenstore-read "/local/domain/$domid/console/ring-ref")
foreign-map "$domid" "$frame" >page || fail "Dom0 cannot map the page of the guest's console"
grep -aq 'lab: written' page || fail "the page that Dom0 mapped is not the guest's console"
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
    fail "the guest read data that the driver domain's image did not hold"
[ "$(guest_said served disk)" = "$(guest_said driver-domain disk)" ] ||
    fail "the driver domain's image does not hold the data that the guest wrote"

# Kill the guest's process, the daemon, or both during writes.
start_example blk-driver-domain verified "$PWD/verified-initrd" || fail "xl could not create a guest"
wait_console verified 40 'lab: round 1'
killed=0
for what in process daemon both; do
    killed=$((killed + 1))
    tell_guest "$backend" $what
    wait_console driver-domain 30 "lab: killed $killed"
    round=$(guest_said verified round)
    wait_console verified 60 "lab: round $((round + 2))"
done
tell_guest "$backend" end

# Save and restore the guest during writes, which xl cannot on Arm.
if [ "$(uname -m)" = x86_64 ]; then
    saved=$domid
    xl save "$saved" "$PWD/saved" || fail "xl could not save the guest"
    wait_gone "$saved" 15
    round=$(guest_said verified round)
    xl restore "$PWD/saved" || fail "xl could not restore the guest"
    domid=$(xl domid verified)
    wait_console verified 60 "lab: round $((round + 2))"
fi
tell_guest "$domid" stop
end_guest verified 40

# Destroy a guest during writes.
start_example blk-driver-domain destroyed "$PWD/writing-initrd" ||
    fail "xl could not create a guest"
wait_console destroyed 40 'lab: writing 3'
xl destroy "$domid" 2>xl-says || fail "xl destroy: $(cat xl-says)"
no_trace "$domid" xl-says

# Destroy the driver domain during writes: the guest loses its disk and nothing else.
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
