# What 8 idle disks take: of Dom0's memory less than 16 MiB, for all of the daemon, and of the
# guest's what `xen-virtiod stat` tells, which is back when their drivers have left.
# guests: pv
# limit: 90
. /lab/dom0/lib.sh

# given: pages of the guest's that the daemon tells of, in all.
given() {
    xen-virtiod stat --json | grep -o '"grants_mapped":[0-9]*' | awk -F : '{ sum += $2 } END { print sum + 0 }'
}

set --
for number in 1 2 3 4 5 6 7 8; do
    make_disk "$number.img" 16
    set -- "$@" "$PWD/$number.img"
done
# Afresh: what served other guests before may keep some memory.
stop_daemon
start_daemon xen-virtiod
make_initrd initrd /lab/scenarios/idle-disks/guest.sh
name=$GUEST-idle-disks
start_guest "$name" "$PWD/initrd" "$@" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: idle'
resident=$(sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB$/\1/p' "/proc/$(cat $daemon_pid)/status")
echo "xen-virtiod has $resident KiB resident; $(given) pages are mapped"
[ "$resident" -lt 16384 ] || fail "xen-virtiod has $resident KiB resident: $(cat "/proc/$(cat $daemon_pid)/status")"
# Each disk's rings, and 64 pages of the pool; the guest does not count its message page. (Xen's own
# list of so many is longer than its log.)
granted=$(guest_said "$name" granted)
[ "$granted" -gt 520 ] || fail "the guest grants $granted pages to 8 disks"
[ "$(given)" = $((granted + 8)) ] ||
    fail "stat tells of $(given) mapped pages, the guest of $granted granted ones beside 8 message pages"
tell_guest "$domid" go
wait_console "$name" 30 'lab: left'
[ "$(given)" = 0 ] || fail "stat tells of $(given) mapped pages, of disks without drivers"
[ -z "$(mapped_grants "$domid")" ] || fail "Xen has grants mapped: $(mapped_grants "$domid")"
tell_guest "$domid" go
end_guest "$name" 30
