# A backend that tries to keep the guest busy. One that sends nonsense, and signals, without a
# pause: the guest puts its interrupts off. One whose configuration changes whenever it is read: it
# is given up in time. Both devices can be let go of.
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
    echo "$signals signals, of which $interrupts interrupted the guest in 5 s"
    [ "${signals:-0}" -gt 1000 ] || fail "the backend has not sent as many signals as it was to"
    # Linux puts off every second interrupt that brings nothing, by one tick: these are two for each
    # of 250 ticks a second, and some more for clocks that differ.
    [ "$interrupts" -lt 3000 ] || fail "nonsense interrupts the guest $interrupts times in 5 s"
done
