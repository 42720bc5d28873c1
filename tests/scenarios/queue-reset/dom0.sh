# The guest resets the queues of a network device and changes the sizes of their rings during
# transfers (ethtool -G). The transfers are complete, and no page of the old rings stays mapped. The
# scenario also runs with other kernels.
# limit: 150
# guests: pv
# soak: pv-bookworm pvh pvh-sid
. /lab/dom0/lib.sh

clean_up() {
    kill "$server" 2>/dev/null || true
    rm -f /etc/xen-virtiod.toml
}
server=
trap clean_up EXIT

# rings_mapped: prints the daemon's count of mapped pages outside the pool: rings and message page.
rings_mapped() {
    xen-virtiod stat | sed -n 's/^ *mapped *\([0-9]*\) page(s), \([0-9]*\) of them.*/\1 \2/p' |
        awk '{ all += $1; pool += $2 } END { print all - pool }'
}

modprobe tun
name=$GUEST-queue-reset
echo "[domain.$name.virtio.0.net]
bridge = \"none\"
tap = \"rings\"" >/etc/xen-virtiod.toml
xen-virtiod check
make_initrd initrd /lab/scenarios/queue-reset/guest.sh
start_example "net-$GUEST" "$name" "$PWD/initrd" || fail "xl could not create the guest"
ip address add 10.9.2.1/24 dev rings
mkdir www
head -c 4M /dev/urandom >www/noise
sum=$(sha256sum <www/noise)
busybox httpd -f -p 10.9.2.1:80 -h www &
server=$!

wait_console "$name" 60 'lab: serving'
# VIRTIO_F_RING_RESET
[ "$(guest_said "$name" features | cut -c 41)" = 1 ] ||
    fail "features: $(guest_said "$name" features)"
[ "$(guest_said "$name" rings-0)" = '256 256' ] ||
    fail "the rings have $(guest_said "$name" rings-0) entries"
before=$(rings_mapped)

turn=0
for sizes in '64 128' '128 32' '32 256' '256 64' '32 32' '256 256'; do
    turn=$((turn + 1))
    tell_guest "$domid" "resize $turn $sizes"
    # Meanwhile data flows in both directions.
    [ "$(busybox wget -q -T 20 -O - http://10.9.2.2/noise | sha256sum)" = "$(guest_said "$name" noise)" ] ||
        fail "iteration $turn: Dom0 received other data from the guest"
    wait_console "$name" 40 "lab: rings-$turn "
    [ "$(guest_said "$name" rings-$turn)" = "$sizes" ] ||
        fail "the rings have $(guest_said "$name" rings-$turn) entries, not $sizes"
    wait_console "$name" 40 "lab: fetch-$turn "
    [ "$(guest_said "$name" fetch-$turn)" = "$sum" ] ||
        fail "iteration $turn: the guest received other data from Dom0"
done
after=$(rings_mapped)
echo "pages mapped outside the pool: $before at first, $after after $turn iterations"
[ "$after" = "$before" ] ||
    fail "$before pages were mapped outside the pool at first, and $after now"
! grep 'device needs reset' $daemon_log | grep "guest=$domid\b" ||
    fail "the reset of a queue caused DEVICE_NEEDS_RESET"

tell_guest "$domid" end
end_guest "$name" 30
check_nothing_mapped
