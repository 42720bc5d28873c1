# Measures the methods to access a granted page, without a device: mapped once, as the pool's pages
# are; copied by the hypervisor; mapped and unmapped each time. Each with one page and with 32 pages
# per call.
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

# measure FIGURE SERVER WAY NUMBER: reads NUMBER pages at a time with the method WAY.
measure() {
    # shellcheck disable=SC2046 # references are words
    reach-pages "$3" 500 "$domid" $(echo "$references" | cut -d ' ' -f "1-$4") >"$RESULTS/figures/$1@$2-pages.rate"
}

while read -r round pass; do
    ways='mapped:mapped grant-copy:copy map:map'
    [ "$pass" != backward ] || ways='map:map grant-copy:copy mapped:mapped'
    for number in 1 32; do
        for way in $ways; do
            measure $round-reach-$number "${way%:*}" "${way#*:}" $number
        done
    done
done <"${jobs:?}/../passes"
tell_guest "$domid" go
end_guest "$name" 30
machine_facts "$name"
