# Row 4: a host of type (a), which bypasses the platform's mechanism, in Dom0. The experiments:
# whether a driver made for it works with raw addresses, and whether the host can read a page of a
# process in the guest that the guest never shared.
# guests: pv pvh hvm
# limit: 300
. /lab/dom0/lib.sh

# row DMA OUTCOME EVIDENCE: writes a result of row 4.
row() {
    result 4 a 'foreign mapping' Dom0 "$(echo "$GUEST" | tr a-z A-Z)" "$@"
}

# peek FRAME: makes the backend read a page of the guest into the file page.
peek() {
    timeout 10 sh -c 'echo "$1" >peeks' sh "$domid $1 $PWD/answer" ||
        fail "waited 10 s for the backend to read the request"
    timeout 10 cat answer >page || fail "waited 10 s for the backend to answer"
}

# row_of_page DMA WORDS: writes a result for the page that peek read; WORDS name the frame.
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
# The driver grants the message page to every type of host, because the bus is Xen's.
outstanding="grants mapped in Xen's list: $(mapped_grants "$domid" | wc -l), in the guest's driver: $(guest_said "$name" grants)"
secret=$(guest_said "$name" secret) frame=$(guest_said "$name" frame)

refusal=$(tail -n "+$((logged + 1))" $daemon_log | sed -n 's/.*\(the hypervisor refuses frame.*\)/\1/p' | head -n 1)
disk=$(sha256sum <disk.img)
if [ -z "$(guest_said "$name" read)" ]; then
    [ -n "$refusal" ] || fail "the guest has no disk, and the backend's log has no reason"
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
    # A PV guest's frame numbers are not machine frame numbers.
    machine=$(machine_frame "$domid" "$frame")
    peek "$machine"
    row_of_page "a page never shared, by the guest's p2m" "frame $frame is the machine's $machine"
fi

tell_guest "$domid" 'done'
end_guest "$name" 60
check_nothing_mapped
