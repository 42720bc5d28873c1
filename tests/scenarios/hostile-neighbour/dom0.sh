# One guest attacks through its disk with all means of a driver, while its neighbour reads, writes
# and verifies data. In every second round the same guest only computes: the neighbour's throughput
# and latency must be similar in both kinds of round. Each guest has a processor for itself, so the
# guests share only Dom0. Then a fault is planted: in every second round, another guest's process
# loops. Dom0 has one processor, of which the neighbour's process must get about its half. At last
# that process takes memory without end: Dom0's kernel ends it, and nothing else.
# guests:
# soak: pv
# machine: three-processors
# limit: 600
# needs: fio
. /lab/dom0/lib.sh

# The number of rounds of each kind, and the seconds of a round.
ROUNDS=5
SECONDS_EACH=8

# own VDEV TARGET [ACCESS]: prints the disk line of a disk that xen-virtiod serves.
own() {
    echo "\"format=raw,vdev=$1,access=${3:-rw},backendtype=standalone,specification=virtio,grant_usage=1,target=$2\""
}

# start NAME SCRIPT PROCESSOR DISKS: starts a guest with these disks, and sets $domid.
start() {
    make_initrd "initrd-$1" "/lab/scenarios/hostile-neighbour/$2"
    start_example blk-pv "$1" "$PWD/initrd-$1" "s|^memory = .*|memory = 256\ntsc_mode = \"native\"\ncpus = \"$3\"|" \
        "s|panic=-1|& quiet|" "s|^disk = .*|disk = [$4]|" || fail "xl could not create the guest $1"
}

# The image is in RAM, so that storage does not affect the measurement.
neighbours=$(mktemp /run/neighbour.XXXXXX)
trap 'rm -f "$neighbours"' EXIT
dd if=/dev/zero of="$neighbours" bs=1M count=32 2>/dev/null
qemu-img create -q -f qcow2 hostile.qcow2 64M

sed -i '/^vm.cpumask/d' /etc/xen/xl.conf
start pv-hostile hostile.sh 1 "$(own xvda "$PWD/hostile.qcow2")"
hostile=$domid
wait_console pv-hostile 60 'lab: ready'
start pv-neighbour neighbour.sh 2 "$(own xvda "$neighbours"), $(own xvdp /lab/files/programs.img r)"
neighbour=$domid
wait_console pv-neighbour 60 'lab: ready'

# measure KIND: measures the neighbour in round $number.
measure() {
    tell_guest "$neighbour" "$number $1 $SECONDS_EACH"
    wait_console pv-neighbour $((SECONDS_EACH * 4)) "lab: round $number "
}

number=0
for _ in $(seq $ROUNDS); do
    for kind in compute attack; do
        number=$((number + 1))
        tell_guest "$hostile" "$number $kind $((SECONDS_EACH + 2))"
        wait_console pv-hostile 20 "lab: begin $number"
        measure $kind
        # Every attack ends within this limit, because all waits of the attacker are shorter.
        wait_console pv-hostile 60 "lab: end $number"
    done
done
tr -d '\r' <"$consoles/guest-pv-hostile.log" | sed -n 's/^.*lab: attack //p' | tail -n 20
# The attacker's disk does not answer any more, so the guest cannot power off.
xl destroy "$hostile"
wait_gone "$hostile" 30
[ "$(wc -c <$daemon_log)" -lt 1000000 ] || fail "the daemon's log has $(wc -c <$daemon_log) bytes"

make_disk looping.img 8
# faulty VARIABLE: has the daemon start the other guest's process with this fault.
faulty() {
    stop_daemon
    eval "$1=\$looping start_daemon exploit"
    wait_for "the process with a fault" 20 "guest_process $looping >/dev/null" sh -c 'while echo; do sleep 0.1; done'
    process=$(guest_process "$looping")
}
start pv-looping looping.sh 1 "$(own xvda "$PWD/looping.img")"
looping=$domid
wait_console pv-looping 60 'lab: ready'
faulty EXPLOIT_LOOPS
for _ in $(seq $ROUNDS); do
    for kind in stopped loop; do
        number=$((number + 1))
        signal=CONT
        [ $kind = loop ] || signal=STOP
        kill -$signal "$process"
        measure $kind
    done
done
ticks=$(awk '{ print $14 + $15 }' "/proc/$process/stat")
[ "$ticks" -gt $((ROUNDS * SECONDS_EACH * 100 / 4)) ] || fail "the process looped for $ticks ticks only"
faulty EXPLOIT_LEAKS
for _ in $(seq $ROUNDS); do
    number=$((number + 1))
    measure leak
done
echo "the process that leaks has $(awk '/VmRSS/ { print $2 }' "/proc/$process/status") KiB"
wait_for "Dom0's kernel to end it" 60 'dmesg | grep -q "Out of memory: Killed"' sh -c 'while echo; do sleep 0.5; done'
dmesg | sed -n 's/.*Out of memory: Killed process [0-9]* (\(.*\)) .*oom_score_adj:\(.*\)/\1 \2/p' >ended
echo "ended for want of memory: $(sort ended | uniq -c | tr '\n' ';')"
# The name of a process that /proc/self/exe started.
! grep -v '^exe 0$' ended || fail "another process was ended for want of memory"
tr -d '\r' <"$consoles/guest-pv-neighbour.log" | sed -n 's/^.*lab: round //p' >rounds
cat rounds

# median KIND FIELD: prints the median of a field over all rounds of that kind.
median() {
    awk -v kind="$1" -v field="$2" '$2 == kind { print $field }' rounds | sort -n |
        awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'
}

# check KIND OTHER WHAT FIELD OPERATOR LIMIT: compares the ratio of the medians in rounds of the two
# kinds with the limit.
check() {
    awk -v what="$3" -v kind="$1" -v with="$(median "$1" "$4")" -v other="$2" \
        -v without="$(median "$2" "$4")" -v operator="$5" -v limit="$6" 'BEGIN {
            ratio = with / without
            good = operator == ">=" ? ratio >= limit : ratio <= limit
            printf "%s: %s in rounds of %s, %s in rounds of %s: ratio %.2f, limit %s %s: %s\n",
                what, with, kind, without, other, ratio, operator, limit, good ? "good" : "BAD"
            exit !good
        }' || failed=yes
}

failed=no
[ "$(wc -l <rounds)" = $((ROUNDS * 5)) ] ||
    fail "the neighbour measured $(wc -l <rounds) rounds, not $((ROUNDS * 5))"
! awk '$6 != 0 { print "round " $1 " had errors"; bad = 1 } END { exit !bad }' rounds || failed=yes
check attack compute 'requests a second' 3 '>=' 0.8
check attack compute 'p50 of a request, ns' 4 '<=' 1.5
check attack compute 'p99 of a request, ns' 5 '<=' 2
check loop stopped 'requests a second' 3 '>=' 0.45
# The process that leaks computes as well: the kernel clears its pages.
echo "requests a second: $(median leak 3) while the process takes memory, $(median stopped 3) while it is stopped"
# For how long a process waits while the other one has the processor is the scheduler's matter.
echo "p99 of a request: $(median loop 5) ns while the process loops, $(median stopped 5) ns while it is stopped"

tell_guest "$neighbour" end
domid=$neighbour
end_guest pv-neighbour 30
tell_guest "$looping" end
domid=$looping
end_guest pv-looping 60
check_nothing_mapped
restore_daemon
[ $failed = no ]
