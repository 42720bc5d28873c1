# Ten guests at once, each with a disk: what each writes stands in its own image.
# guests: pv
# limit: 240
. /lab/dom0/lib.sh

guests="1 2 3 4 5 6 7 8 9 10"
make_initrd initrd /lab/scenarios/ten-guests/guest.sh
for guest in $guests; do
    make_disk "$guest.img" 2
    start_example blk-pv "pv-ten-$guest" "$PWD/initrd" "s|^memory = .*|memory = 96|" \
        "s|panic=-1|panic=-1 quiet|" "s|target=[^\"]*|target=$PWD/$guest.img|" || fail "xl could not create guest $guest"
done
for guest in $guests; do
    wait_console "pv-ten-$guest" 120 'lab: ready'
done
[ "$(xl list | wc -l)" = 12 ] || fail "not all guests are there: $(xl list)"
[ "$(xen-virtiod stat --json | grep -o '"state":"connected"' | wc -l)" = 10 ] ||
    fail "not all disks are connected: $(xen-virtiod stat | grep ^domain)"

for guest in $guests; do
    tell_guest "$(xl domid "pv-ten-$guest")" go
done
for guest in $guests; do
    domid=$(xl domid "pv-ten-$guest")
    end_guest "pv-ten-$guest" 120
    [ "$(guest_said "pv-ten-$guest" disk)" = "$(sha256sum <"$guest.img")" ] ||
        fail "guest $guest's image is not what it wrote"
done
check_nothing_mapped
