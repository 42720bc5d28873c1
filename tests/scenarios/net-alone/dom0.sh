# A network device without a bridge, with interface name and MAC address from the configuration
# file. If the bridge does not exist, the guest starts without the device, and the daemon reports
# why. (For devices of the class `virtio`, xl does not wait for a backend.) If the interface
# disappears before the driver is ready, the guest's kernel reports it.
# limit: 100
# guests: pvh
. /lab/dom0/lib.sh

clean_up() {
    kill "$server" 2>/dev/null || true
    rm -f /etc/xen-virtiod.toml
}
server=
trap clean_up EXIT
modprobe tun

echo '[default.net]
bridge = "nosuch"' >/etc/xen-virtiod.toml
start_example net-pvh pvh-net-refused /lab/guest/initrd || fail "xl could not create the guest"
error=/local/domain/0/backend/virtio/$domid/0/error
wait_for "the reason in $error" 10 "xenstore-read $error >why 2>/dev/null" xenstore-watch $error
grep -qF 'there is no bridge nosuch' why || fail "the reason is $(cat why)"
grep -qF 'device refused: there is no bridge nosuch' $daemon_log || fail "the log does not say why"
xl destroy "$domid"
wait_gone "$domid" 15

echo '[domain.pvh-net-alone.virtio.0.net]
bridge = "none"
mac = "00:16:3e:12:34:56"
tap = "alone"
queues = 9' >/etc/xen-virtiod.toml
! xen-virtiod check 2>check-says || fail "xen-virtiod check accepts nine queue pairs"
grep -qF '/etc/xen-virtiod.toml:5: domain.pvh-net-alone.virtio.0.net.queues: 9 is not' check-says ||
    fail "check says: $(cat check-says)"
sed -i '$d' /etc/xen-virtiod.toml
xen-virtiod check

echo '[domain.pvh-net-late.virtio.0.net]
bridge = "none"
tap = "late"' >>/etc/xen-virtiod.toml
make_initrd initrd-late /lab/scenarios/net-alone/late.sh
start_example net-pvh pvh-net-late "$PWD/initrd-late" || fail "xl could not create the guest"
wait_console pvh-net-late 40 'lab: waiting'
ip link delete late
tell_guest "$domid" go
end_guest pvh-net-late 30
grep -q 'device needs reset: network interface' $daemon_log ||
    fail "the log does not say that the interface disappeared"
guest_said pvh-net-late gone | grep -q 'device given up: .*DEVICE_NEEDS_RESET' ||
    fail "the guest's kernel says: $(guest_said pvh-net-late gone)"
check_nothing_mapped

{ echo 'address=10.9.1.2'; cat /lab/scenarios/net/guest.sh; } >script
make_initrd initrd script
start_example net-pvh pvh-net-alone "$PWD/initrd" || fail "xl could not create the guest"
ip address add 10.9.1.1/24 dev alone
mkdir www
head -c 2M /dev/urandom >www/noise
busybox httpd -f -p 10.9.1.1:80 -h www &
server=$!

wait_console pvh-net-alone 40 'lab: serving'
[ "$(guest_said pvh-net-alone mac)" = 00:16:3e:12:34:56 ] ||
    fail "the address is $(guest_said pvh-net-alone mac)"
[ "$(xenstore-read "/local/domain/0/backend/virtio/$domid/0/tap")" = alone ] ||
    fail "the key tap does not name the interface"
[ "$(busybox wget -q -T 20 -O - http://10.9.1.2/noise | sha256sum)" = "$(guest_said pvh-net-alone noise)" ] ||
    fail "Dom0 received other data from the guest"
tell_guest "$domid" 'fetch 10.9.1.1 1'
wait_console pvh-net-alone 30 'lab: fetch-1 '
[ "$(guest_said pvh-net-alone fetch-1)" = "$(sha256sum <www/noise)" ] ||
    fail "the guest received other data from Dom0"
tell_guest "$domid" end
end_guest pvh-net-alone 30
check_nothing_mapped
[ ! -e /sys/class/net/alone ] || fail "the interface still exists"
