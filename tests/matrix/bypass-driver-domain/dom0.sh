# Row 5: the host of row 4 in a driver domain. Whatever it tries, the hypervisor lets it map only
# granted pages.
# guests: pv pvh
# limit: 300
. /lab/dom0/lib.sh

# row DMA OUTCOME EVIDENCE: writes a result of row 5.
row() {
    result 5 a 'foreign mapping' 'driver domain' "$(echo "$GUEST" | tr a-z A-Z)" "$@"
}

make_initrd backend-initrd /lab/scenarios/bypass-driver-domain/backend.sh /lab/guest/vm-memory-xen.cpio
make_initrd guest-initrd /lab/scenarios/bypass/guest.sh
name=$GUEST-bypass
start_example driver-domain driver-domain "$PWD/backend-initrd" ||
    fail "xl could not create the driver domain"
backend=$domid
# On Dom0's processor, so that a guest and its backend do not compete for one.
xl vcpu-pin -i driver-domain 0 0
wait_console driver-domain 150 'lab: serving'
start_example blk-driver-domain "$name" "$PWD/guest-initrd" "s|^type = .*|type = \"$GUEST\"|" \
    '/^virtio = /d' || fail "xl could not create a guest"
wait_console "$name" 150 'lab: frame'

# A driver domain cannot find the machine frame of a PV guest's frame, so Dom0 sends it.
frame=$(guest_said "$name" frame)
[ "$GUEST" != pv ] || frame=$(machine_frame "$domid" "$frame")
# The control: the frame is the guest's page with the secret, and Dom0 can map it.
foreign-map "$domid" "$frame" >page || fail "Dom0 cannot map the frame $frame"
[ "$(sha256sum <page)" = "$(guest_said "$name" secret)" ] ||
    fail "the frame $frame does not hold the secret"

tell_guest "$backend" "$domid $frame"
wait_console driver-domain 20 'lab: disk'
refusal=$(guest_said driver-domain refusal)
if [ -n "$(guest_said "$name" read)" ]; then
    row 'raw addresses' 'works' "the guest read $(guest_said "$name" read)"
elif [ -z "$refusal" ]; then
    fail "the guest has no disk, and the backend's log has no reason"
elif [ "$(guest_said driver-domain disk)" = "$(guest_said driver-domain image)" ]; then
    row 'raw addresses' 'refused by the hypervisor, no byte moved' \
        "$refusal; the guest: $(guest_said "$name" refused)"
else
    row 'raw addresses' 'refused by the hypervisor, and the image is not what it was' "$refusal"
fi
answer=$(guest_said driver-domain answer)
case $answer in
refused:*EPERM*) row 'a page never shared' 'refused by the hypervisor' "frame $frame: $answer" ;;
"$(guest_said "$name" secret)") row 'a page never shared' 'reads a page never shared' "sha256 $answer" ;;
*) row 'a page never shared' 'reads something else' "$answer" ;;
esac

tell_guest "$domid" 'done'
end_guest "$name" 60
xl destroy "$backend" || fail "xl could not destroy the driver domain"
wait_gone "$backend" 20
