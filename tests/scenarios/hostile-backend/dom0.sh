# Two backends try to keep the guest busy. One sends malformed messages and notifications without a
# pause: the guest delays its interrupts. One changes its configuration on every read: the driver
# gives the device up in time. The guest can unbind both devices.
# guests: pv
# limit: 150
. /lab/dom0/lib.sh

make_disk "$PWD/disk.img" 8
for attack in nonsense changing-config; do
    name=$GUEST-$attack
    { echo "attack=$attack" && cat /lab/scenarios/hostile-backend/guest.sh; } >script
    make_initrd "$name" script
    stop_daemon
    start_daemon hostile-backend $attack
    logged=$(wc -l <$daemon_log)
    start_guest "$name" "$PWD/$name" "$PWD/disk.img" || fail "xl could not create the guest"
    wait_console "$name" 60 "lab: seen"
    signals=$(tail -n "+$logged" $daemon_log | sed -n 's/.* sent \([0-9]*\) signals.*/\1/p' | tail -n 1)
    stop_daemon
    start_daemon xen-virtiod
    tell_guest "$domid" 'the backend is gone'
    end_guest "$name" 40
    [ $attack = nonsense ] || continue
    interrupts=$(guest_said "$name" interrupts)
    echo "$signals notifications, and $interrupts interrupts of the guest in 5 s"
    [ "${signals:-0}" -gt 1000 ] ||
        fail "the backend sent only ${signals:-0} notifications, 1000 or fewer"
    # Linux delays every second spurious interrupt by one tick. With 250 ticks per second these are
    # 2500 interrupts in 5 s, and some more if the clocks differ.
    [ "$interrupts" -lt 3000 ] ||
        fail "malformed messages interrupt the guest $interrupts times in 5 s"
done
