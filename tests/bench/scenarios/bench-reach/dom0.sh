# The ways to reach a page that a guest granted, without a device around them: mapped once, as those
# of the pool are, copied by the hypervisor, and mapped and unmapped each time; one page at a time,
# and 32 by one call.
# guests: pv pvh
# limit: 300
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

make_initrd initrd /lab/scenarios/bench-reach/guest.sh /lab/files/modules.cpio
name=$GUEST-bench-reach
start_bench "$name" ""
wait_console "$name" 60 'lab: references'
references=$(guest_said "$name" references)
mkdir "$RESULTS/figures"

# measure FIGURE SERVER WAY NUMBER: reads that many pages at a time, that way.
measure() {
    # shellcheck disable=SC2046 # references are words
    reach-pages "$3" 500 "$domid" $(echo "$references" | cut -d ' ' -f "1-$4") >"$RESULTS/figures/$1@$2-pages.rate"
}

round=1
while read -r order; do
    ways='mapped:mapped grant-copy:copy map:map'
    [ "$order" = forward ] || ways='map:map grant-copy:copy mapped:mapped'
    for number in 1 32; do
        for way in $ways; do
            measure $round-reach-$number "${way%:*}" "${way#*:}" $number
        done
    done
    round=$((round + 1))
done <"/lab/files/jobs/$GUEST/rounds"
tell_guest "$domid" go
end_guest "$name" 30
machine_facts "$name"
