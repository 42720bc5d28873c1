# Storage takes two seconds for each write. The guest's process is killed while its writes are under
# way, and the guest then writes the same sectors anew: the stores have the newest data. dm-delay
# keeps writes in order, which other storage does not: so at no time may more requests be under way
# than one write needs, since the next process waits for those of the dead one. One disk bypasses
# Dom0's page cache, the other does not.
# guests: pv
# soak: pvh
# limit: 2400
# needs: dmsetup
. /lab/dom0/lib.sh

# The soak does 100 rounds.
ROUNDS=3
[ "$GUEST" = pv ] || ROUNDS=100

clean_up() {
    [ -z "${watcher:-}" ] || kill $watcher
    tool dmsetup remove --retry late-direct
    tool dmsetup remove --retry late-cached
    rmmod brd
}
trap 'clean_up >/dev/null 2>&1' EXIT

mount_programs
modprobe -r brd
modprobe brd rd_nr=2 rd_size=8192
modprobe dm-delay

# late NAME STORE: makes a disk with slow writes, and prints its path.
late() {
    tool dmsetup create --noudevsync --noudevrules "$1" \
        --table "0 16384 delay $2 0 0 $2 0 2000"
    echo "/dev/$(tool dmsetup info -c --noheadings -o blkdevname "$1")"
}
direct=$(late late-direct /dev/ram0)
cached=$(late late-cached /dev/ram1)

# in_flight NAME: prints the number of requests that the disk with this name holds up.
in_flight() {
    tool dmsetup status "$1" | awk '{ print $4 + $5 + $6 }'
}

# watch: writes the most requests that each disk held up at a time into the file `most`, for ever.
watch() {
    local most_direct=0 most_cached=0 now
    while true; do
        now=$(in_flight late-direct)
        [ "$now" -le $most_direct ] || most_direct=$now
        now=$(in_flight late-cached)
        [ "$now" -le $most_cached ] || most_cached=$now
        echo "$most_direct direct, $most_cached cached" >most.new
        mv most.new most
    done
}

name=$GUEST-late-write
make_initrd initrd /lab/scenarios/late-write/guest.sh
start_guest "$name" "$PWD/initrd" "$direct:direct" "$cached" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: ready'
looks='while echo; do sleep 0.02; done'
watch 2>/dev/null &
watcher=$!

# What one write needs: nothing is killed in this round.
tell_guest "$domid" write
wait_console "$name" 60 'lab: second 1'
one=$(cat most)
killed=0
# check_most ROUND: fails if more requests were ever under way at a time than one write needs.
check_most() {
    [ "$(cat most)" = "$one" ] || fail "round $1: one write needs $one requests; at a time, there" \
        "were $(cat most)"
}
for round in $(seq 2 $((ROUNDS + 1))); do
    process=$(guest_process "$domid") || fail "the guest has no process"
    tell_guest "$domid" write
    wait_for "a write to be under way" 20 "[ \"\$(in_flight late-direct)\" != 0 ]" sh -c "$looks"
    kill -9 "$process"
    [ "$(in_flight late-direct)" = 0 ] || killed=$((killed + 1))
    wait_console "$name" 60 "lab: first $round"
    # Anew, with other data, as soon as the first write is done.
    wait_console "$name" 60 "lab: second $round"
    for disk in late-direct late-cached; do
        wait_for "$disk to have answered everything" 20 "[ \"\$(in_flight $disk)\" = 0 ]" sh -c "$looks"
    done
    newest=$(guest_said "$name" "sum-$round")
    for store in /dev/ram0 /dev/ram1; do
        [ "$(dd if=$store bs=64k count=1 iflag=direct 2>/dev/null | sha256sum)" = "$newest" ] ||
            fail "round $round: $store does not have the newest data"
    done
    check_most "$round"
done
echo "$killed of $ROUNDS processes died with writes under way; requests at a time: $(cat most)"
[ $killed -gt $((ROUNDS / 2)) ] || fail "too few processes died with writes under way"
tell_guest "$domid" end
end_guest "$name" 40
check_nothing_mapped
