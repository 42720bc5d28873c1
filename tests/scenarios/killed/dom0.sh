# The daemon is killed under a guest's devices. Those whose drivers wait for nothing, network,
# console, entropy, vsock and an idle disk, are given up: while nobody serves them, and when the
# next daemon closes them. Their drivers and virtio_msg_xen can be unbound and unloaded, and serve
# again when they are bound again. A disk whose requests were in flight stays dead, without harm to
# anything else.
# guests: pv
# soak: pv-bookworm pvh-sid
# limit: 240
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
    's|^virtio = \[|&"type=virtio,device1,transport=mmio,grant_usage=1",|' \
    "\$adisk = [\"$idle\", \"$busy\"]" || fail "xl could not create the guest"

# kill_daemon: kills it, and says so to the guest, whose states stay as they are.
kill_daemon() {
    kill -9 "$(cat $daemon_pid)"
    stop_daemon
    [ -z "$(mapped_grants "$domid")" ] || fail "grants are mapped by nobody: $(mapped_grants "$domid")"
    tell_guest "$domid" killed
}

wait_console "$name" 60 'lab: devices 1'
kill_daemon
wait_console "$name" 90 'lab: unloaded virtio_net'
start_daemon xen-virtiod
wait_console "$name" 60 'lab: unloaded all'

wait_console "$name" 60 'lab: devices 2'
wait_console "$name" 60 'lab: writing'
kill_daemon
wait_console "$name" 60 'lab: kept'
start_daemon xen-virtiod
end_guest "$name" 60
