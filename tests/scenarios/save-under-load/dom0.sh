# A guest writes and verifies its disk, a qcow2 image, with fio (several jobs, requests of mixed
# sizes, fsync), and sends a TCP stream, while xl pauses it, saves and restores it, saves it and
# lets it continue, migrates it to the same host, and fails to migrate it after it was suspended. No
# write that was acknowledged is lost, nothing is corrupt, no task of the guest's hangs, and the
# stream goes on.
# guests: pv
# soak: pvh pv-bookworm pvh-sid hvm
# not-on-arm: xl cannot save guests there
# limit: 4000
# needs: fio
. /lab/dom0/lib.sh
. /lab/dom0/under-load.sh

# The soak has 20 turns, or 5 with other kernels, and a longer pause.
case $GUEST$KERNEL in
pv) TURNS=1 PAUSE=5 ;;
pvh) TURNS=20 PAUSE=120 ;;
*) TURNS=5 PAUSE=120 ;;
esac

receive_streams
name=$GUEST-save-under-load
qemu-img create -q -f qcow2 disk.qcow2 48M
start_loaded_guest "$name" "$PWD/disk.qcow2" "s|panic=-1|& lab.size=2|"

# The name of the console's log: of a guest that was migrated, it is another one.
console=$name

# rounds: prints the number of rounds that the guest has verified.
rounds() {
    cat "$consoles/guest-$name"*.log | tr -d '\r' | sed -n 's/^lab: round //p' | sort -n | tail -n 1
}

# check_goes_on: waits until the guest has verified a whole round, and its stream goes on.
check_goes_on() {
    local before
    domid=$(xl domid "$name")
    before=$(rounds)
    wait_console "$console" 120 "lab: round $((before + 2))"
    [ "$(received "$domid")" -gt 1000000 ] || fail "the guest sent $(received "$domid") bytes in a round"
}

[ "$GUEST" != pv ] ||
    echo "not tried: xl migrate, since Debian's Xen cannot log which pages of a PV guest change"
for turn in $(seq $TURNS); do
    xl save "$domid" saved || fail "turn $turn: xl could not save the guest"
    wait_gone "$domid" 30
    xl restore saved || fail "turn $turn: xl could not restore the guest"
    console=$name
    check_goes_on

    xl save -c "$domid" saved || fail "turn $turn: xl save -c could not save the guest"
    check_goes_on

    [ "$GUEST" != pv ] || continue
    # The destination has the whole guest, but its answer does not arrive.
    answer='xl migration receiver ready, send binary domain data.'
    ! timeout 120 xl migrate -s '' "$domid" "xl migrate-receive | head -c $((${#answer} + 1))" ||
        fail "the migration did not fail"
    ! xl domid "$name--incoming" 2>/dev/null || xl destroy "$name--incoming"
    check_goes_on

    moved=$domid
    timeout 120 xl migrate -s '' "$moved" 'exec xl migrate-receive' || fail "turn $turn: xl could not migrate the guest"
    wait_gone "$moved" 30
    console=$name--incoming
    check_goes_on
    [ "$domid" != "$moved" ] || fail "turn $turn: the guest was not moved"
done

xl pause "$domid"
sleep $PAUSE
xl unpause "$domid"
check_goes_on
echo "saved, continued and moved $TURNS times; the guest verified $(rounds) rounds"
tell_guest "$domid" stop
end_guest "$console" 120
check_nothing_mapped
qemu-img check -q disk.qcow2 || fail "the image is damaged: $(qemu-img check disk.qcow2)"
! dmesg | grep -E 'BUG:|WARNING: CPU' || fail "Dom0's kernel warns"
[ -z "$(ls /run/xen-virtiod/records)" ] || fail "records are left: $(ls /run/xen-virtiod/records)"
