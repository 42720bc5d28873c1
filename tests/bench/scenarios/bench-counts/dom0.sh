# Counts the cost of a request instead of timing it: xen-virtiod's counters before and after a fixed
# number of requests of each kind, and its system calls.
# limit: 400
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

make_files 1
make_left
make_jobs jobs.cpio 'ours-file xvdm' 'results xvdo' 'programs xvdp'
make_initrd initrd /lab/scenarios/bench-counts/guest.sh jobs.cpio
name=$GUEST-bench-counts
disks="$(own xvdm /run/bench/0), $(own xvdo $LEFT), $(programs)"
start_bench "$name" "$disks"
mkdir "$RESULTS/counts"

# counted WORK WHEN: saves the daemon's counters when the guest waits.
counted() {
    wait_console $name 120 "lab: $2 $1"
    xen-virtiod stat --json >"$RESULTS/counts/$1.$2"
}

while read -r work _; do
    counted "$work" before
    tell_guest "$domid" go
    counted "$work" after
    strace -c -f -p "$(cat $daemon_pid)" -o "$RESULTS/counts/$work.calls" 2>strace.says &
    tracer=$!
    wait_for "strace to trace xen-virtiod" 20 true \
        sh -c 'tail -n +1 -F strace.says | grep --line-buffered attached'
    tell_guest "$domid" go
    wait_console $name 200 "lab: traced $work"
    kill -INT $tracer
    wait $tracer || true
    tell_guest "$domid" go
done <"${jobs:?}/../counts"
end_guest $name 60
machine_facts $name
