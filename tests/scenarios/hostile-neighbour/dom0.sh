# One guest attacks by its disk, in every way that its driver has, while its neighbour reads and
# writes and verifies what it reads. In turns with that, the same guest only computes: the neighbour
# gets as much done either way. Each guest has a processor for itself: what they share is Dom0.
# guests:
# soak: pv
# machine: three-processors
# limit: 400
# needs: fio
. /lab/dom0/lib.sh

# Rounds of each kind, and seconds of one.
ROUNDS=5
SECONDS_EACH=8

# own VDEV TARGET [ACCESS]: a disk of xen-virtiod's, in xl's words.
own() {
    echo "\"format=raw,vdev=$1,access=${3:-rw},backendtype=standalone,specification=virtio,grant_usage=1,target=$2\""
}

# start NAME SCRIPT PROCESSOR DISKS: a guest with these disks, whose number is then $domid.
start() {
    make_initrd "initrd-$1" "/lab/scenarios/hostile-neighbour/$2"
    start_example blk-pv "$1" "$PWD/initrd-$1" "s|^memory = .*|memory = 256\ntsc_mode = \"native\"\ncpus = \"$3\"|" \
        "s|panic=-1|& quiet|" "s|^disk = .*|disk = [$4]|" || fail "xl could not create the guest $1"
}

# In RAM, so that the store is no part of it.
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

# round NUMBER KIND: what the neighbour gets done while the other guest does KIND.
round() {
    tell_guest "$hostile" "$1 $2 $((SECONDS_EACH + 2))"
    wait_console pv-hostile 20 "lab: begin $1"
    tell_guest "$neighbour" "$1 $2 $SECONDS_EACH"
    wait_console pv-neighbour $((SECONDS_EACH * 4)) "lab: round $1 "
    # Whatever it attacks with, it comes to an end: nothing that it waits for takes longer.
    wait_console pv-hostile 60 "lab: end $1"
}

number=0
for _ in $(seq $ROUNDS); do
    for kind in compute attack; do
        number=$((number + 1))
        round $number $kind
    done
done
tr -d '\r' <"$consoles/guest-pv-neighbour.log" | sed -n 's/^.*lab: round //p' >rounds
tr -d '\r' <"$consoles/guest-pv-hostile.log" | sed -n 's/^.*lab: attack //p' | tail -n 20
cat rounds

# median KIND FIELD: of all rounds of that kind.
median() {
    awk -v kind="$1" -v field="$2" '$2 == kind { print $field }' rounds | sort -n |
        awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'
}

# check WHAT FIELD OPERATOR LIMIT: the median beside the attacker is to the other one as the limit
# has it.
check() {
    awk -v what="$1" -v with="$(median attack "$2")" -v without="$(median compute "$2")" \
        -v operator="$3" -v limit="$4" 'BEGIN {
            ratio = with / without
            good = operator == ">=" ? ratio >= limit : ratio <= limit
            printf "%s: %s beside the attacker, %s beside the computing guest: %.2f, to be %s %s: %s\n",
                what, with, without, ratio, operator, limit, good ? "good" : "BAD"
            exit !good
        }' || failed=yes
}

failed=no
[ "$(wc -l <rounds)" = $((ROUNDS * 2)) ] || fail "not every round was measured"
! awk '$6 != 0 { print "round " $1 " had errors"; bad = 1 } END { exit !bad }' rounds || failed=yes
check 'requests a second' 3 '>=' 0.8
check 'p50 of a request, ns' 4 '<=' 1.5
check 'p99 of a request, ns' 5 '<=' 2
[ "$(wc -c <$daemon_log)" -lt 1000000 ] || fail "the daemon's log has $(wc -c <$daemon_log) bytes"

tell_guest "$neighbour" end
domid=$neighbour
end_guest pv-neighbour 30
# The attacker has no disk any more that would let it power off in peace.
xl destroy "$hostile"
wait_gone "$hostile" 30
check_nothing_mapped
[ $failed = no ]
