# Row 4: a host of type (a), which knows of no platform's mechanism, in Dom0: whether a driver that
# is made for it can do with raw addresses, and what the host reaches beside what it is asked to: a
# page of a process in the guest that was never shared with anybody.
# guests: pv pvh hvm
# limit: 300
. /lab/dom0/lib.sh

# row DMA OUTCOME EVIDENCE: a cell of row 4.
row() {
    cell 4 a 'foreign mapping' Dom0 "$(echo "$GUEST" | tr a-z A-Z)" "$@"
}

# peek FRAME: has the backend read a page of the guest's into the file page.
peek() {
    timeout 10 sh -c 'echo "$1" >peeks' sh "$domid $1 $PWD/answer" || fail "the backend takes no question"
    timeout 10 cat answer >page || fail "waited 10 s for the backend to answer"
}

# row_of_page DMA WORDS: a cell of what was peeked; WORDS say which frame it was.
row_of_page() {
    if [ "$(sha256sum <page)" = "$secret" ]; then
        row "$1" 'reads a page never shared' \
            "$2: 4096 bytes, sha256 $(echo "$secret" | head -c 8), are the guest's secret; $outstanding"
    elif grep -aq '^refused: ' page; then
        row "$1" 'refused by the hypervisor' "$2: $(head -n 1 page)"
    else
        row "$1" 'reads something else' "$2: sha256 $(sha256sum <page | head -c 8)"
    fi
}

mkfifo peeks answer
head -c 1M /dev/urandom >disk.img
before=$(sha256sum <disk.img)
make_initrd initrd /lab/scenarios/bypass/guest.sh
name=$GUEST-bypass
stop_daemon
start_daemon vm-memory-xen bypass "$PWD/peeks"
logged=$(wc -l <$daemon_log)
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
wait_console "$name" 150 'lab: frame'
# The message page is granted whatever the host: the bus is Xen's own.
outstanding="grants mapped in Xen's list: $(mapped_grants "$domid" | wc -l), in the guest's driver: $(guest_said "$name" grants)"
secret=$(guest_said "$name" secret) frame=$(guest_said "$name" frame)

refusal=$(tail -n "+$((logged + 1))" $daemon_log | sed -n 's/.*\(the hypervisor refuses frame.*\)/\1/p' | head -n 1)
disk=$(sha256sum <disk.img)
if [ -z "$(guest_said "$name" read)" ]; then
    [ -n "$refusal" ] || fail "the guest has no disk, and the backend does not say why"
    outcome='refused by the hypervisor, no byte moved'
    [ "$disk" = "$before" ] || outcome='refused by the hypervisor, and the image is not what it was'
    row 'raw addresses' "$outcome" "$refusal; the guest: $(guest_said "$name" refused)"
elif [ "$(guest_said "$name" read)" = "$before" ] && [ "$(guest_said "$name" written)" = "$disk" ]; then
    row 'raw addresses' 'works, data right' \
        "read sha256 $(echo "$before" | head -c 8), wrote $(echo "$disk" | head -c 8); $outstanding"
else
    row 'raw addresses' 'works, data wrong' \
        "read $(guest_said "$name" read) of $before, wrote $(guest_said "$name" written), on the disk is $disk"
fi
row grants "refused by the guest's driver" "the guest's kernel: $(guest_said "$name" ordinary)"

peek "$frame"
row_of_page 'a page never shared' "frame $frame"
if [ "$GUEST" = pv ]; then
    # The guest's frames are not the machine's.
    machine=$(machine_frame "$domid" "$frame")
    peek "$machine"
    row_of_page "a page never shared, by the guest's p2m" "frame $frame is the machine's $machine"
fi

tell_guest "$domid" 'done'
end_guest "$name" 60
check_nothing_mapped
