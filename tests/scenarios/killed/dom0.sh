# The daemon is killed while it serves a guest's devices. The next one takes over disks (see
# taken-over), network (see net), console, entropy and vsock. The driver gives up a network device
# that the guest unbinds while no daemon runs. The guest can unbind and unload the drivers and
# virtio_msg_xen, and the devices work again when it binds them again. A disk that the guest unbinds
# while no daemon runs and requests are in flight stays dead, without harm to other devices. The
# guest can do all of this, and power off, also while it waits for the daemon to answer a message.
# guests: pv
# soak: pvh pv-bookworm pvh-sid
# limit: 480
. /lab/dom0/lib.sh

name=$GUEST-killed
modprobe tun
for disk in idle busy; do
    make_disk "$PWD/$disk.img" 8
done
make_initrd initrd /lab/scenarios/killed/guest.sh
line=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' /lab/xen-configs/blk-pv.cfg)
idle=$(echo "$line" | sed "s|target=.*|target=$PWD/idle.img|")
busy=$(echo "$line" | sed "s|vdev=xvda|vdev=xvdb|; s|target=.*|target=$PWD/busy.img|")
start_example devices-pv "$name" "$PWD/initrd" "s|^type = .*|type = \"$GUEST\"|" \
    's|^virtio = \[|&"type=virtio,device1,grant_usage=1",|' \
    "\$adisk = [\"$idle\", \"$busy\"]" || fail "xl could not create the guest"

# kill_daemon: kills the daemon and informs the guest. The states in XenStore do not change.
kill_daemon() {
    local processes process
    processes=$(daemon_processes)
    kill -9 "$(cat $daemon_pid)"
    for process in $processes; do
        timeout 20 tail --pid="$process" -s 0.1 -f /dev/null || fail "process $process did not end"
    done
    [ -z "$(mapped_grants "$domid")" ] ||
        fail "Xen has grants mapped after the daemon's end: $(mapped_grants "$domid")"
    tell_guest "$domid" killed
}

# The soak also has pools that wait for the daemon, which takes minutes.
parts=all
[ "$GUEST$KERNEL" != pv ] || parts=some

wait_console "$name" 60 'lab: devices 1'
tell_guest "$domid" $parts
kill_daemon
wait_console "$name" 90 'lab: unloaded virtio_net'
start_daemon xen-virtiod
wait_console "$name" 60 'lab: unloaded all'

if [ $parts = all ]; then
    wait_console "$name" 60 'lab: idle 1'
    kill_daemon
    wait_console "$name" 180 'lab: unloaded again'
    start_daemon xen-virtiod
    tell_guest "$domid" started
fi

wait_console "$name" 60 'lab: devices 2'
wait_console "$name" 60 'lab: writing'
kill_daemon
wait_console "$name" 60 'lab: kept'
start_daemon xen-virtiod
tell_guest "$domid" started

if [ $parts = all ]; then
    wait_console "$name" 60 'lab: idle 2'
    kill_daemon
fi
end_guest "$name" 120
restore_daemon
