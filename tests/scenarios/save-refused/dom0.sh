# A suspend that cannot succeed is refused, with the reason in the guest's log, and costs the guest
# nothing: while its backend does not answer, and while requests are unfinished. A restored guest
# whose disk is smaller now gets errors from that disk, its log says why, and its other disk goes
# on. (xl waits for 60 s before it reports that the guest was not suspended.)
# guests:
# soak: pv pvh pv-bookworm pvh-sid
# not-on-arm: xl cannot save guests there
# limit: 400
. /lab/dom0/lib.sh

name=$GUEST-save-refused
make_disk first.img 8
make_disk second.img 8
make_initrd initrd /lab/scenarios/save-refused/guest.sh
start_guest "$name" "$PWD/initrd" "$PWD/first.img" "$PWD/second.img" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: checked 1'

# check NUMBER: lets the guest use both disks.
check() {
    tell_guest "$domid" check
    wait_console "$name" 60 "lab: checked $1"
}

# refused WHY: checks that the guest cannot be saved while its process is stopped.
refused() {
    ! xl save "$domid" saved || fail "xl saved the guest, whose backend does not answer"
    kill -CONT "$process"
    wait_console "$name" 20 "suspend refused: $1"
}

# The freeze of kernel threads waits for the answer of an idle device.
process=$(guest_process "$domid") || fail "the guest has no process"
kill -STOP "$process"
refused 'the backend did not answer'
check 2

# A request that nobody waits for.
kill -STOP "$process"
tell_guest "$domid" write
wait_console "$name" 20 'lab: writing'
refused 'requests are unfinished'
check 3

xl save "$domid" saved || fail "xl could not save the guest"
truncate -s 4M second.img
xl restore saved || fail "xl could not restore the guest"
domid=$(xl domid "$name")
wait_console "$name" 30 'the disk is smaller now'
tell_guest "$domid" smaller
end_guest "$name" 60
check_nothing_mapped
[ "$(guest_said "$name" first)" = "$(sha256sum <first.img)" ] || fail "first.img is not what the guest wrote"
