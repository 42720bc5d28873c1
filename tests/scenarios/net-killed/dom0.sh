# The process that serves a guest's interface dies again and again while a transfer is under way.
# The next one goes on at the same interface, and Dom0's kernel is sound: Linux 6.12 as a PV domain
# gave away pages that were mapped twice when a process with io_uring died.
# guests: pv
# limit: 240
. /lab/dom0/lib.sh

modprobe -a tun bridge
ip link add xenbr0 type bridge
trap 'ip link delete xenbr0' EXIT
ip address add 10.9.0.1/24 dev xenbr0
ip link set xenbr0 up
name=$GUEST-net-killed
{ echo "address=10.9.0.2"; cat /lab/scenarios/net/guest.sh; } >script
make_initrd initrd script
start_example "net-$GUEST" "$name" "$PWD/initrd" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: serving'
noise=$(guest_said "$name" noise)
index=$(cat "/sys/class/net/virtio$domid.0/ifindex")

# fetched: whether Dom0 receives the guest's data.
fetched() {
    [ "$(busybox wget -q -T 30 -O - http://10.9.0.2/noise | sha256sum)" = "$noise" ]
}

for turn in $(seq 12); do
    fetched &
    kill -9 "$(guest_process "$domid")"
    # Programs take the pages that the dead process had.
    for _ in 1 2 3 4 5 6 7 8; do
        sh -c 'ls -l /proc/self/fd' >/dev/null
    done
    wait $! || fail "the transfer of turn $turn broke off"
    fetched || fail "the guest does not answer after turn $turn"
    # Five deaths within two seconds of the start of a process are a fault.
    [ $((turn % 3)) != 0 ] || sleep 2.1
done
[ "$(cat "/sys/class/net/virtio$domid.0/ifindex")" = "$index" ] || fail "the interface is another one"
tell_guest "$domid" end
end_guest "$name" 30
check_nothing_mapped
