# Two threads of the daemon process the queues of a disk: which served the reads of each of the
# guest's processors, and how often each slept.
# guests:
# soak: pv pvh
# limit: 90
# machine: two-for-dom0
. /lab/dom0/lib.sh

READS=512

# thread NAME: prints the directory of the thread with this name of the guest's process.
thread() {
    local task
    for task in /proc/"$(guest_process "$domid")"/task/*; do
        [ "$(cat "$task/comm")" != "$1" ] || echo "$task"
    done
}

# sleeps THREAD: prints how often a thread slept.
sleeps() {
    awk '/^voluntary_ctxt_switches/ { print $2 }' "$1/status"
}

name=$GUEST-queue-threads
head -c 32M /dev/urandom >disk.img
make_initrd initrd /lab/scenarios/queue-threads/guest.sh
start_example "blk-$GUEST" "$name" "$PWD/initrd" 's|^vcpus = .*|vcpus = 2|' \
    "s|target=[^\"]*|target=$PWD/disk.img|" || fail "xl could not create the guest"
wait_console "$name" 40 'lab: ready'
xen-virtiod stat | grep -q 'threads *2$' || fail "stat names no threads: $(xen-virtiod stat)"
first=$(thread "$domid-51712") second=$(thread "$domid-51712.1")
[ -n "$second" ] || fail "the daemon has no second thread: $(
    cat /proc/"$(guest_process "$domid")"/task/*/comm)"

# served_by PROCESSOR THREAD OTHER: has a processor of the guest's read, and checks which thread
# served it.
served_by() {
    local before_served before_other served other
    before_served=$(sleeps "$2") before_other=$(sleeps "$3")
    tell_guest "$domid" "read $1 $READS"
    wait_console "$name" 40 "lab: read-$1"
    served=$(($(sleeps "$2") - before_served))
    other=$(($(sleeps "$3") - before_other))
    echo "$READS reads of processor $1: $(cat "$2/comm") slept $served times, $(cat "$3/comm") $other"
    [ $served -gt 0 ] || fail "$(cat "$2/comm") did not serve processor $1"
    # Messages may wake it up, for the pool.
    [ $other -lt 32 ] || fail "$(cat "$3/comm") woke up for requests of processor $1"
}
served_by 0 "$first" "$second"
served_by 1 "$second" "$first"
tell_guest "$domid" end
wait_console "$name" 20 'lab: same'
end_guest "$name" 30
check_nothing_mapped
