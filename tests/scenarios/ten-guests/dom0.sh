# Ten guests run at once, each with a disk; each guest's image holds the data that the guest wrote.
# guests:
# soak: pv
# limit: 240
. /lab/dom0/lib.sh

make_initrd initrd /lab/scenarios/ten-guests/guest.sh

# One guest boots while xl builds the next one. The guests share a processor, so booting all of them
# at once takes longer.
booting=
CREATE_FLAGS=-p
for guest in 1 2 3 4 5 6 7 8 9 10; do
    make_disk "$guest.img" 2
    start_example blk-pv "pv-ten-$guest" "$PWD/initrd" "s|^memory = .*|memory = 128|" \
        "s|panic=-1|panic=-1 quiet|" "s|target=[^\"]*|target=$PWD/$guest.img|" ||
        fail "xl could not create guest $guest"
    [ -z "$booting" ] || wait_console "$booting" 60 'lab: ready'
    booting=pv-ten-$guest
    xl unpause "$booting"
done
wait_console "$booting" 60 'lab: ready'
[ "$(xl list | wc -l)" = 12 ] || fail "not all guests run: $(xl list)"
[ "$(xen-virtiod stat --json | grep -o '"state":"connected"' | wc -l)" = 10 ] ||
    fail "not all disks are connected: $(xen-virtiod stat | grep ^domain)"

for guest in 1 2 3 4 5 6 7 8 9 10; do
    tell_guest "$(xl domid "pv-ten-$guest")" go
done
domids=
for guest in 1 2 3 4 5 6 7 8 9 10; do
    wait_console "pv-ten-$guest" 60 'lab: exit'
    [ "$(guest_said "pv-ten-$guest" exit)" = 0 ] || fail "the script of guest $guest failed"
    domid=$(xl domid "pv-ten-$guest")
    domids="$domids $domid"
    tell_guest "$domid" 'the console is read'
done
for domid in $domids; do
    wait_gone "$domid" 30
done
check_nothing_mapped
for guest in 1 2 3 4 5 6 7 8 9 10; do
    [ "$(guest_said "pv-ten-$guest" disk)" = "$(sha256sum <"$guest.img")" ] ||
        fail "the image of guest $guest does not hold the data that the guest wrote"
done
