# A guest's interface in VLANs of a bridge: Dom0 reaches it if it is in the VLAN of the guest's
# frames without a tag, and not otherwise. A killed process changes nothing of that, and
# another daemon puts it into those that the configuration has by then. On a bridge that does not
# filter VLANs the daemon refuses the device.
# guests:
# soak: pv
# limit: 150
. /lab/dom0/lib.sh

name=$GUEST-net-vlan

clean_up() {
    rm -f /etc/xen-virtiod.toml
    ip link delete xenbr9
}
trap clean_up EXIT

# answers ANSWER: has the guest ping Dom0, and checks what came of it.
pings=0
answers() {
    pings=$((pings + 1))
    tell_guest "$domid" ping
    wait_console "$name" 30 "lab: ping-$pings "
    [ "$(guest_said "$name" ping-$pings)" = "$1" ] || fail "ping $pings: $(guest_said "$name" ping-$pings), not $1"
}

# vlans: prints the VLANs of the guest's interface.
vlans() {
    bridge vlan show dev "virtio$domid.0" | sed "1d; s/virtio$domid.0//" | xargs
}

# comes_to VLANS: waits until the guest's interface is in these VLANs alone.
comes_to() {
    wait_for "the interface to be in the VLANs $1" 20 "[ \"\$(vlans)\" = '$1' ]" \
        sh -c 'while echo; do sleep 0.2; done'
}

modprobe -a tun bridge
ip link add xenbr9 type bridge
ip address add 10.9.3.1/24 dev xenbr9
ip link set xenbr9 up
echo "[domain.$name.virtio.0.net]
bridge = \"xenbr9\"
vlan = \"10p/20-22\"" >/etc/xen-virtiod.toml
make_initrd initrd /lab/scenarios/net-vlan/guest.sh
start_example "net-$GUEST" "$name" "$PWD/initrd" || fail "xl could not create the guest"
error=/local/domain/0/backend/virtio/$domid/0/error
wait_for "the reason in $error" 10 "xenstore-read $error >why 2>/dev/null" xenstore-watch $error
grep -qF 'bridge xenbr9 does not filter VLANs' why || fail "the reason is $(cat why)"
xl destroy "$domid"
wait_gone "$domid" 15

ip link set xenbr9 type bridge vlan_filtering 1
start_example "net-$GUEST" "$name" "$PWD/initrd" || fail "xl could not create the guest"
wait_console "$name" 40 'lab: ready'
comes_to '10 PVID Egress Untagged 20 21 22'
# Dom0 is in VLAN 1, the bridge's default.
answers silence
bridge vlan add dev xenbr9 vid 10 pvid untagged self
answers answered
before=$(guest_process "$domid") || fail "the guest has no process"
kill -9 "$before"
wait_for "another process" 20 "next=\$(guest_process $domid) && [ \$next != $before ]" \
    sh -c 'while echo; do sleep 0.2; done'
answers answered
[ "$(vlans)" = '10 PVID Egress Untagged 20 21 22' ] || fail "the interface is in the VLANs $(vlans)"

# Another daemon, by another configuration.
sed -i 's|^vlan = .*|vlan = "20/30p"|' /etc/xen-virtiod.toml
stop_daemon
start_daemon xen-virtiod
comes_to '20 30 PVID Egress Untagged'
answers silence
sed -i 's|^vlan = .*|vlan = "10"|' /etc/xen-virtiod.toml
stop_daemon
start_daemon xen-virtiod
comes_to '10 PVID Egress Untagged'
answers answered

# And at another bridge, where it was not.
ip link set "virtio$domid.0" nomaster
stop_daemon
start_daemon xen-virtiod
comes_to '10 PVID Egress Untagged'
answers answered
bridge vlan delete dev xenbr9 vid 10 self
answers silence
tell_guest "$domid" end
end_guest "$name" 40
check_nothing_mapped
