# An upgrade between this xen-virtiod and one that reads and writes records of devices as the
# version before did, and back, while a guest writes and verifies its disk: the guest sees neither
# an error nor wrong data. A record that is newer than the daemon is refused by name: the guest
# loses that disk, and has it anew when it binds the device again.
# guests:
# soak: pv pvh
# limit: 900
. /lab/dom0/lib.sh

TURNS=3
# The planted faults of `exploit` are the records of the version before.
export EXPLOIT_PREVIOUS=1
this=xen-virtiod previous=exploit

# start NAME: starts a guest.
start() {
    make_disk "$1.img" 8
    start_guest "$1" "$PWD/initrd" "$PWD/$1.img" || fail "xl could not create the guest $1"
    # PVH guests are slow in this machine, and two share a processor.
    wait_console "$1" 180 'lab: round 2'
}

# rounds NAME: prints the number of rounds that the guest has verified.
rounds() {
    tr -d '\r' <"$consoles/guest-$1.log" | sed -n 's/^lab: round //p' | tail -n 1
}

# replace PROGRAM SIGNAL GUEST…: ends the daemon, and starts the other one, which serves a whole
# round of each guest.
replace() {
    local program=$1 signal=$2 daemon guest before
    shift 2
    daemon=$(cat $daemon_pid)
    kill "-$signal" "$daemon"
    timeout 20 tail --pid="$daemon" -s 0.1 -f /dev/null || fail "the daemon did not end"
    start_daemon "$program"
    for guest; do
        before=$(rounds "$guest")
        wait_console "$guest" 120 "lab: round $((before + 2))"
    done
}

# version DOMID: prints the version of the records of the guest's devices.
version() {
    od -An -tu4 -j8 -N4 /run/xen-virtiod/records/*-"$1"-*.record | xargs
}

make_initrd initrd /lab/scenarios/upgrade/guest.sh
old=$GUEST-upgrade-old new=$GUEST-upgrade-new
stop_daemon
start_daemon $previous
start "$old"
old_domid=$domid
[ "$(version "$old_domid")" = 1 ] || fail "the record has version $(version "$old_domid"), not 1"
for turn in $(seq $TURNS); do
    for program in $this $previous; do
        signal=KILL
        [ $((turn % 2)) = 0 ] || signal=TERM
        replace $program $signal "$old"
        [ "$(version "$old_domid")" = 1 ] || fail "the record has version $(version "$old_domid")"
    done
done

# A device that connects to this daemon has a record that the one before does not know.
replace $this TERM "$old"
start "$new"
[ "$(version "$domid")" = 2 ] || fail "the record has version $(version "$domid"), not 2"
replace $this KILL "$old" "$new"
grep "guest=$domid .*taken over from an earlier process of xen-virtiod [0-9]" $daemon_log ||
    fail "the log does not say whom the disk was taken over from"
tell_guest "$domid" rest
wait_console "$new" 120 'lab: resting'
replace $previous TERM "$old"
backend=/local/domain/0/backend/virtio_disk/$domid/51712
wait_console "$new" 120 'lab: lost'
grep "guest=$domid .*record has version 2; this xen-virtiod knows 1 and older" $daemon_log ||
    fail "the log does not say why the disk was refused"
tell_guest "$domid" bind
wait_console "$new" 120 'lab: anew'
[ "$(xenstore-read "$backend/state")" = 4 ] || fail "the disk is not connected anew"
[ "$(version "$domid")" = 1 ] || fail "the record has version $(version "$domid"), not 1"
replace $this TERM "$old"

for name in "$new" "$old"; do
    domid=$(xl domid "$name")
    tell_guest "$domid" stop
    end_guest "$name" 60
done
check_nothing_mapped
[ -z "$(ls /run/xen-virtiod/records)" ] || fail "records are left: $(ls /run/xen-virtiod/records)"
