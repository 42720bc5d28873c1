# A guest that has the whole of its qcow2 disks zeroed, over and over and from all sides, is
# destroyed as quickly as any other, and nobody has its images when xl is done.
# guests: pv
# limit: 120
. /lab/dom0/lib.sh

for image in one two; do
    qemu-img create -q -f qcow2 $image.qcow2 256G
done
make_initrd initrd /lab/scenarios/destroy-while-zeroing/guest.sh
name=$GUEST-zeroing
for turn in 1 2; do
    start_guest "$name" "$PWD/initrd" "$PWD/one.qcow2" "$PWD/two.qcow2" || fail "xl could not create the guest"
    wait_console "$name" 60 'lab: zeroed'
    xl destroy "$domid" 2>xl-says || fail "xl destroy: $(cat xl-says)"
    ! grep -E 'timed out|rror' xl-says || fail "xl complains"
    for image in one two; do
        qemu-img check -q $image.qcow2 ||
            fail "turn $turn: $image.qcow2 is not sound, or not free: $(qemu-img check $image.qcow2 2>&1)"
    done
    wait_gone "$domid" 20
    rm "$consoles/guest-$name.log"
done
check_nothing_mapped
