# With 8 idle disks the daemon and the guest's process use less than 20 MiB of Dom0's memory, and
# none of their threads wakes up. The guest's memory that they map is what `xen-virtiod stat`
# reports, and the guest gets all of it back when it unbinds the drivers.
# guests: pv
# limit: 90
. /lab/dom0/lib.sh

# given: prints the number of pages that the daemon has mapped, of all devices.
given() {
    xen-virtiod stat --json | grep -o '"grants_mapped":[0-9]*' | awk -F : '{ sum += $2 } END { print sum + 0 }'
}

# wake_ups: prints how often the daemon's threads have slept.
wake_ups() {
    daemon_threads | while read -r thread; do cat "$thread/status"; done |
        awk '/^voluntary_ctxt_switches/ { sum += $2 } END { print sum }'
}

# is_quiet: whether no thread wakes up for 3 s. The daemon compares the sizes of disks for 2 s after
# their guest wrote.
is_quiet() {
    local before
    before=$(wake_ups)
    sleep 3
    [ "$(wake_ups)" = "$before" ]
}

set --
for number in 1 2 3 4 5 6 7 8; do
    make_disk "$number.img" 16
    set -- "$@" "$PWD/$number.img"
done
# Start a new daemon: one that served other guests may still hold memory.
stop_daemon
start_daemon xen-virtiod
make_initrd initrd /lab/scenarios/idle-disks/guest.sh
name=$GUEST-idle-disks
start_guest "$name" "$PWD/initrd" "$@" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: idle'
resident=$(daemon_resident)
echo "xen-virtiod has $resident KiB resident; $(given) pages are mapped"
[ "$resident" -lt 20480 ] ||
    fail "xen-virtiod has $resident KiB resident"
# The guest counts each disk's rings and 64 pages of its pool, but not its message page. (Xen's own
# list of this many grants is longer than its log.)
granted=$(guest_said "$name" granted)
[ "$granted" -gt 520 ] || fail "the guest grants $granted pages to 8 disks"
[ "$(given)" = $((granted + 8)) ] ||
    fail "stat reports $(given) mapped pages, the guest $granted granted pages and 8 message pages"
for _ in 1 2 3 4 5; do
    ! is_quiet || break
done
before=$(wake_ups)
sleep 10
[ "$(wake_ups)" = "$before" ] ||
    fail "an idle daemon's threads woke up $(($(wake_ups) - before)) times in 10 s: $(
        daemon_threads | while read -r thread; do grep -H '^voluntary' "$thread/status"; done)"
echo "xen-virtiod's threads slept for 10 s"
tell_guest "$domid" go
wait_console "$name" 30 'lab: left'
[ "$(given)" = 0 ] || fail "stat reports $(given) mapped pages of disks without drivers"
[ -z "$(mapped_grants "$domid")" ] || fail "Xen has grants mapped: $(mapped_grants "$domid")"
tell_guest "$domid" go
end_guest "$name" 30
