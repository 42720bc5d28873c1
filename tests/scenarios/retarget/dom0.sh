# A guest writes and verifies its disk with fio, and sends a TCP stream, while its disk gets an
# overlay, and overlays of that, as for snapshots. No write that was acknowledged is lost, and none
# reaches an image below the last one.
# guests:
# soak: pv pvh
# limit: 900
# needs: fio
. /lab/dom0/lib.sh
. /lab/dom0/under-load.sh

SNAPSHOTS=5

receive_streams
name=$GUEST-retarget
qemu-img create -q -f qcow2 disk-0.qcow2 48M
start_loaded_guest "$name" "$PWD/disk-0.qcow2"
disk=xvda
for number in $(seq $SNAPSHOTS); do
    before=disk-$((number - 1)).qcow2
    qemu-img create -q -f qcow2 -b "$before" -F qcow2 "disk-$number.qcow2"
    xen-virtiod retarget "$name" $disk "target=$PWD/disk-$number.qcow2" || fail "the disk did not get overlay $number"
    sums="${sums:-}$(sha256sum "$before")
"
    rounds=$(tr -d '\r' <"$consoles/guest-$name.log" | sed -n 's/^lab: round //p' | tail -n 1)
    wait_console "$name" 120 "lab: round $((rounds + 2))"
done
sent=$(received "$domid")
[ "$sent" -gt 1000000 ] || fail "the guest sent $sent bytes"
printf %s "$sums" | sha256sum -c --quiet || fail "an image below the last one was written"
echo "$number overlays, the guest verified $((rounds + 2)) rounds"
tell_guest "$domid" stop
end_guest "$name" 120
check_nothing_mapped
for image in disk-*.qcow2; do
    qemu-img check -q "$image" || fail "$image is damaged: $(qemu-img check "$image")"
done
