# Interfaces that scripts attach by Xen's conventions: Xen's own vif-route, one that fails, and what
# is taken back when a guest ends, also while no daemon runs.
# guests: pv
# limit: 150
. /lab/dom0/lib.sh

scripts=/etc/xen/scripts
runs=$PWD/runs
name=$GUEST-net-script

clean_up() {
    kill "$server" 2>/dev/null || true
    rm -f /etc/xen-virtiod.toml $scripts/vif-noted $scripts/vif-refuses /usr/local/sbin/ifconfig
    ip link delete gate 2>/dev/null || true
}
server=
trap clean_up EXIT

# wait_for_runs COUNT: waits until the script has begun for the COUNTth time.
wait_for_runs() {
    wait_for "run $1 of the script" 20 "[ \"\$(wc -l <$runs)\" -ge $1 ]" tail -n +1 -F "$runs"
}

# start: starts a guest at 10.9.2.2.
start() {
    start_example "net-$GUEST" "$name" "$PWD/initrd" || fail "xl could not create the guest"
}

modprobe -a tun bridge
ip link add gate type bridge
ip address add 10.9.2.1/24 dev gate
ip link set gate up
ln -s "$(command -v busybox)" /usr/local/sbin/ifconfig
touch "$runs"
cat >$scripts/vif-noted <<END
#!/bin/sh
echo "\$1 \$vif \$ip \$netdev \$XENBUS_PATH" >>$runs
exec $scripts/vif-route "\$@"
END
cat >$scripts/vif-refuses <<'END'
#!/bin/bash
dir=$(dirname "$0")
. "$dir/vif-common.sh"
[ "$command" = offline ] || fatal "no port is free for $dev"
END
chmod +x $scripts/vif-noted $scripts/vif-refuses
{ echo "address=10.9.2.2"; cat /lab/scenarios/net/guest.sh; } >script
make_initrd initrd script
mkdir www
head -c 2M /dev/urandom >www/noise
busybox httpd -f -p 10.9.2.1:80 -h www &
server=$!

echo "[domain.$name.virtio.0.net]
script = \"vif-refuses\"" >/etc/xen-virtiod.toml
xen-virtiod check
start
error=/local/domain/0/backend/virtio/$domid/0/error
wait_for "the reason in $error" 20 "xenstore-read $error >why 2>/dev/null" xenstore-watch $error
grep -q "the script $scripts/vif-refuses failed.*: no port is free for virtio$domid.0" why ||
    fail "the reason is $(cat why)"
[ ! -e "/sys/class/net/virtio$domid.0" ] || fail "the refused interface exists"
xl destroy "$domid"
wait_gone "$domid" 15

echo "[domain.$name.virtio.0.net]
script = \"vif-noted\"
gateway = \"gate\"
lock-addresses = [\"10.9.2.2\"]" >/etc/xen-virtiod.toml
start
wait_console "$name" 60 'lab: serving'
backend=/local/domain/0/backend/virtio/$domid/0
ip route get 10.9.2.2 | grep -q "dev virtio$domid.0 " || fail "routes: $(ip route)"
ip -o link show "virtio$domid.0" | grep -qv master || fail "the interface is a bridge's port"
[ "$(xenstore-read "$backend/hotplug-status")" = connected ] || fail "the script did not succeed"
noise=$(guest_said "$name" noise)
[ "$(busybox wget -q -T 20 -O - http://10.9.2.2/noise | sha256sum)" = "$noise" ] ||
    fail "Dom0 received other data from the guest"
kill -9 "$(guest_process "$domid")"
tell_guest "$domid" 'fetch 10.9.2.1 1'
wait_console "$name" 60 'lab: fetch-1 '
[ "$(guest_said "$name" fetch-1)" = "$(sha256sum <www/noise)" ] ||
    fail "the guest received other data from Dom0"
tell_guest "$domid" end
first=$domid
end_guest "$name" 30
wait_for_runs 2
# A script of a guest that is gone has no keys any more.
cat >expected <<END
online virtio$first.0 10.9.2.2 gate backend/virtio/$first/0
offline virtio$first.0 10.9.2.2 gate backend/virtio/$first/0
END
diff expected "$runs" || fail "the script ran otherwise"

start
wait_console "$name" 60 'lab: serving'
second=$domid
kill -9 "$(cat $daemon_pid)"
xl destroy "$second"
wait_gone "$second" 60
restore_daemon
wait_for_runs 4
[ "$(tail -n 1 "$runs")" = "offline virtio$second.0 10.9.2.2 gate backend/virtio/$second/0" ] ||
    fail "the script ran otherwise: $(cat "$runs")"
[ ! -e "/sys/class/net/virtio$second.0" ] || fail "the interface of a guest that is gone exists"
check_nothing_mapped
