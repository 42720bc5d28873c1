# bpftrace counts a guest's requests by the probes of its confined process, with the script that the
# package installs: as many as the guest did, by operation. The process goes on without it.
# guests:
# soak: pv
# limit: 300
# needs: bpftrace
# not-on-arm: the lab's Dom0 for Arm was not tried with bpftrace
. /lab/dom0/lib.sh

mount_programs tracing
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
name=$GUEST-tracing
make_disk disk.img 4
make_initrd initrd /lab/scenarios/tracing/guest.sh
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: ready'
process=$(guest_process "$domid") || fail "the guest has no process"

# The script, which also prints its histograms each second.
program=$(command -v xen-virtiod)
sed "s|/usr/sbin/xen-virtiod|$program|" /lab/request-times.bt >times.bt
echo 'interval:s:1 { print(@us); }' >>times.bt
# Not by the function tool: a shell in the background ignores SIGINT.
LD_LIBRARY_PATH=$programs/lib "$programs/bin/bpftrace" -B line times.bt >counted 2>errors &
tracer=$!
trap 'cat errors' EXIT
# The guest asks for the serial number until then: nothing says when the last probe is in place.
wait_for "bpftrace to see a request" 120 'grep -qF "@us[8]" counted' sh -c \
    'while kill -0 "$1"; do echo serial >"$2"; echo; sleep 1; done' \
    sh $tracer "$(xenstore-read "/local/domain/$domid/console/tty")"
tell_guest "$domid" work
wait_console "$name" 60 'lab: worked'
kill -INT $tracer
wait $tracer || fail "bpftrace failed"
trap - EXIT

# requests OPERATION: prints the number of requests in the last histogram of an operation.
requests() {
    awk -v start="@us[$1]:" '$0 == start { own = 1; sum = 0; next } /^@/ { own = 0 }
        own && /\|/ { split($0, part, "|"); fields = split(part[1], field); sum += field[fields] }
        END { print sum + 0 }' counted
}
echo "traced: $(requests 0) reads, $(requests 1) writes, $(requests 4) flushes"
[ "$(requests 0)" = 100 ] && [ "$(requests 1)" = 20 ] && [ "$(requests 4)" = 1 ] ||
    fail "the guest did 100 reads, 20 writes and a flush; bpftrace saw: $(cat counted)"
[ "$(guest_process "$domid")" = "$process" ] || fail "the guest's process was replaced"
tell_guest "$domid" end
end_guest "$name" 40
check_nothing_mapped
