# The devices of a guest's `virtio = [...]`: entropy at a rate, by the guest's name and the device's
# position; a console both ways, its window's size, and a further port of it; vsock streams both
# ways, made by either side; a type that nobody serves.
# guests: pv
# limit: 120
. /lab/dom0/lib.sh

name=devices
settings=/etc/xen-virtiod.toml
trap 'rm -f $settings' EXIT
cat >$settings <<EOF
[domain.$name.virtio.0.rng]
rate = "2KiB/s"
[domain.$name.virtio.2.console]
ports = ["org.example.agent"]
[domain.$name.virtio.3.vsock]
cid = 1234
EOF
xen-virtiod check

# Before the example's devices, another entropy device at no rate; behind them, one that nobody
# serves.
make_initrd initrd /lab/scenarios/devices/guest.sh
start_example devices-pv $name "$PWD/initrd" \
    's|^virtio = \[|&"type=virtio,device4,transport=mmio,grant_usage=1",|' \
    's|^ *"type=virtio,device13,.*|&"type=virtio,device99,transport=mmio,grant_usage=1",|' ||
    fail "xl could not create the guest"

# xl does not wait for the backends of such devices, nor does the guest for one that is refused: it
# is said by the daemon.
why='virtio device type "virtio,device99" is not supported'
for place in "$(cat $daemon_log)" "$(xen-virtiod stat)" "$(xenstore-read "backend/virtio/$domid/4/error")"; do
    case $place in
    *"$why"*) ;;
    *) fail "it is not said why a device is refused: $place" ;;
    esac
done

# The console: what Dom0 types comes back.
tty=$(xenstore-read "backend/virtio/$domid/2/tty")
wait_console $name 40 'lab: console'
head -c 65536 /dev/urandom >typed
cat typed >"$tty" &
timeout 40 head -c 65536 <"$tty" >printed || fail "the console gave $(wc -c <printed) bytes of 65536"
busybox cmp typed printed || fail "the console changed what was typed"

# The window of the terminal, which the guest waits to see.
stty -F "$tty" rows 40 cols 100
wait_console $name 40 'lab: size'
[ "$(guest_said $name size)" = '40 100' ] || fail "rows and columns are $(guest_said $name size)"

# The further port: more data than anything between keeps, both ways at once.
head -c 2M /dev/urandom >told
port=$(xenstore-read "backend/virtio/$domid/2/port/1/socket")
mkfifo words
socat -t 60 - "UNIX-CONNECT:$port" <told >words &
program=$!
timeout 60 head -c 2M <words >heard || fail "the agent said $(wc -c <heard) bytes of 2 MiB"
wait_console $name 60 'lab: agent'
kill $program
[ "$(guest_said $name told)" = "$(sha256sum <told)" ] || fail "the agent was told something else"
[ "$(guest_said $name heard)" = "$(sha256sum <heard)" ] || fail "the agent said something else"

# Streams: a program here connects to the guest, then the guest to a program here. Each side sends a
# file, ends its sending and takes the other's file to the end.
socket=$(xenstore-read "backend/virtio/$domid/3/socket")
[ "$socket" = /run/xen-virtiod/vsock/$name-3.sock ] || fail "the socket is $socket"
head -c 4M /dev/urandom >down
socat -t 40 "UNIX-LISTEN:${socket}_2000" - <down >up-2 &
listener=$!
wait_console $name 40 'probe: listening on 1234:1000'
{ echo 'CONNECT 1000' && cat down; } | socat -t 40 - "UNIX-CONNECT:$socket" >said
{ read -r ok && cat >up-1; } <said
[ "${ok% *}" = OK ] || fail "the guest was not reached: $ok"
wait_console $name 40 'lab: streams'
wait $listener
[ "$(guest_said $name down-1)" = "$(sha256sum <down)" ] || fail "the guest took something else"
[ "$(guest_said $name down-2)" = "$(sha256sum <down)" ] || fail "the guest took something else"
[ "$(guest_said $name up)" = "$(sha256sum <up-1)" ] || fail "the guest sent something else"
[ "$(guest_said $name up)" = "$(sha256sum <up-2)" ] || fail "the guest sent something else"

wait_console $name 40 'lab: entropy'
# counted DEVICE WORD: what stat says of a device of the guest's.
counted() {
    xen-virtiod stat | sed -n "/^domain $domid virtio.$1:/,/^domain/s/^  $2 *//p"
}
[ "$(counted 0 rate)" = '2048 B/s' ] || fail "device 0 has the rate $(counted 0 rate)"
[ "$(counted 1 rate)" = unlimited ] || fail "device 1 has the rate $(counted 1 rate)"
[ -n "$(counted 0 waits)" ] || fail "device 0 never waited for its rate"
[ -z "$(counted 1 waits)" ] || fail "device 1 waited, $(counted 1 waits)"
[ "$(counted 3 streams)" = '2 made, 0 open' ] || fail "device 3's streams: $(counted 3 streams)"
[ "$(counted 3 bytes)" = "$((8 << 20)) read, $((8 << 20)) written" ] ||
    fail "device 3's bytes: $(counted 3 bytes)"
end_guest $name 30
check_nothing_mapped
