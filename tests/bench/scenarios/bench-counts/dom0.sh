# Counts the cost of a request instead of timing it. For xen-virtiod, xen-blkback and xen-netback:
# the time of Dom0's processor and of the guest's, and context switches in Dom0, over many requests
# less those over few. For xen-virtiod also its own counters, its threads' context switches and its
# system calls; and the context switches of its threads in 10 s without a request.
# limit: 1200
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh
. /lab/scenarios/bench-net/bridges.sh

name=$GUEST-bench-counts
start_beside "$name" bench-counts
mkdir "$RESULTS/counts"
requested=0

# request WORK SERVER NUMBER: makes the guest do that number of requests, and sets $units to the
# number that it did.
request() {
    requested=$((requested + 1))
    tell_guest "$domid" "$requested $*"
    wait_console "$name" 200 "lab: did-$requested "
    units=$(guest_said "$name" did-$requested)
}

# seconds DOMID: prints the processor time of a domain.
seconds() {
    xl list "$1" | awk 'END { print $NF }'
}

# daemon_switches: prints the number of context switches of xen-virtiod's threads.
daemon_switches() {
    daemon_threads | while read -r thread; do cat "$thread/status"; done | awk '/ctxt_switches:/ { sum += $2 } END { print sum }'
}

# usage: prints the processor time of Dom0 and of the guest, and the context switches of Dom0 and of
# xen-virtiod.
usage() {
    echo "$(seconds 0) $(seconds "$domid") $(awk '/^ctxt/ { print $2 }' /proc/stat) $(daemon_switches)"
}

# counted WORK SERVER NUMBER: adds a line to the file costs: WORK SERVER, the number of requests,
# and what they used.
counted() {
    local before
    before=$(usage)
    request "$@"
    echo "$1 $2 $units $before $(usage)" |
        awk '{ print $1, $2, $3, $8 - $4, $9 - $5, $10 - $6, $11 - $7 }' >>"$RESULTS/counts/costs"
}

# traced WORK NUMBER: counts xen-virtiod's system calls for that number of requests.
traced() {
    local tracer
    rm -f strace.says
    strace -c -f -p "$(guest_process "$domid")" -o "$RESULTS/counts/$1.calls" 2>strace.says &
    tracer=$!
    wait_for "strace to trace xen-virtiod" 20 true \
        sh -c 'tail -n +1 -F strace.says | grep --line-buffered attached'
    request "$1" ours "$2"
    echo "$units" >"$RESULTS/counts/$1.traced"
    kill -INT $tracer
    wait $tracer || true
}

wait_console "$name" 120 'lab: ready'
while read -r work few many theirs _ <&3; do
    counted "$work" ours "$few"
    xen-virtiod stat --json >"$RESULTS/counts/$work.before"
    counted "$work" ours "$many"
    xen-virtiod stat --json >"$RESULTS/counts/$work.after"
    counted "$work" "$theirs" "$few"
    counted "$work" "$theirs" "$many"
    traced "$work" "$few"
done 3<"${jobs:?}/../counts"
before=$(daemon_switches)
sleep 10
echo "10 $(($(daemon_switches) - before))" >"$RESULTS/counts/idle"
tell_guest "$domid" end
end_guest "$name" 60
machine_facts "$name"
