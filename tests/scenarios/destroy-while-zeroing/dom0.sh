# Several processes of a guest zero its whole qcow2 disks in endless loops. `xl destroy` ends the
# guest as quickly as any other, and no program has its images open afterwards.
# guests:
# soak: pv
# limit: 120
. /lab/dom0/lib.sh

for image in one two; do
    qemu-img create -q -f qcow2 $image.qcow2 256G
done
make_initrd initrd /lab/scenarios/destroy-while-zeroing/guest.sh
name=$GUEST-zeroing
for turn in 1 2; do
    start_guest "$name" "$PWD/initrd" "$PWD/one.qcow2" "$PWD/two.qcow2" ||
        fail "xl could not create the guest"
    wait_console "$name" 60 'lab: zeroed'
    xl destroy "$domid" 2>xl-says || fail "xl destroy: $(cat xl-says)"
    ! grep -E 'timed out|rror' xl-says || fail "xl destroy printed an error"
    for image in one two; do
        qemu-img check -q $image.qcow2 ||
            fail "iteration $turn: $image.qcow2 is damaged or in use:" \
                "$(qemu-img check $image.qcow2 2>&1)"
    done
    wait_gone "$domid" 20
    rm "$consoles/guest-$name.log"
done
check_nothing_mapped
