# Measures scaling: 1, 2, 4 and 8 guests read at the same time, each from its own disk; and one
# guest reads through 1, 2 and 4 queues of one disk.
# guests: pv
# limit: 1200
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

# guest NAME VCPUS OWN BLKBACK: starts a guest with the files of these numbers as disks.
guest() {
    local name=$1 disks
    disks="$(own xvdm "/run/bench/$3"), $(blkback xvde "/run/bench/$4"), $(programs)"
    start_bench "$name" "$disks" "s|^memory = .*|memory = 160|" "s|^vcpus = .*|vcpus = $2|" \
        "s|panic=-1|& quiet|"
    wait_console "$name" 90 'lab: ready'
    domids="$domids $domid"
}

# measure FIGURE JOBS NUMBER: makes the first NUMBER guests read at once, with JOBS jobs each, and
# sums their rates.
measure() {
    local figure=$1 jobs=$2 number=$3 server=${1#*@} guest=0 sum=0
    server=${server%-file}
    for domid in $(echo $domids | cut -d ' ' -f "1-$number"); do
        tell_guest "$domid" "$figure $server $jobs"
    done
    while [ $guest -lt "$number" ]; do
        guest=$((guest + 1))
        wait_console "$prefix-$guest" 60 "lab: $figure "
        sum=$(echo "$sum $(guest_said "$prefix-$guest" "$figure")" | awk '{ print $1 + $2 }')
    done
    echo "$sum" >"$RESULTS/figures/$figure.rate"
}

# in_order: prints the servers in the order of the pass.
in_order() {
    [ "$pass" = backward ] && echo blkback ours || echo ours blkback
}

# end_guests: ends all guests.
end_guests() {
    for domid in $domids; do
        tell_guest "$domid" end
    done
    for guest in $(seq "$(echo $domids | wc -w)"); do
        wait_console "$prefix-$guest" 60 'lab: exit'
        domid=$(xl domid "$prefix-$guest")
        tell_guest "$domid" 'the console is read'
        wait_gone "$domid" 30
    done
    domids=
}

make_files 16 16
make_jobs jobs.cpio 'ours-file xvdm' 'blkback-file xvde' 'programs xvdp'
make_initrd initrd /lab/scenarios/bench-scale/guest.sh /lab/files/modules.cpio jobs.cpio
mkdir "$RESULTS/figures"

domids='' prefix=pv-bench-scale
for guest in 1 2 3 4 5 6 7 8; do
    guest $prefix-$guest 1 $((guest * 2 - 2)) $((guest * 2 - 1))
done
while read -r round pass <&3; do
    for number in 1 2 4 8; do
        for server in $(in_order); do
            measure "$round-guests-$number@$server-file" 1 $number
        done
    done
done 3<"${jobs:?}/../passes"
end_guests

prefix=pv-bench-queues
guest $prefix-1 4 0 1
while read -r round pass <&3; do
    for number in 1 2 4; do
        for server in $(in_order); do
            measure "$round-queues-$number@$server-file" $number 1
        done
    done
done 3<"${jobs:?}/../passes"
machine_facts $prefix-1
end_guests
