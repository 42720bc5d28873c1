# The devices of a guest's `virtio = [...]`: entropy with a rate limit, configured by the guest's
# name and the device's position; a console in both directions, with window size and a further port;
# vsock streams in both directions, opened by either side; an unsupported device type.
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

# An entropy device without a rate limit precedes the example's devices; an unsupported device
# replaces the last one.
make_initrd initrd /lab/scenarios/devices/guest.sh
start_example devices-pv $name "$PWD/initrd" \
    's|^virtio = \[|&"type=virtio,device4,grant_usage=1",|' \
    's|^ *"type=virtio,device13,.*|&"type=virtio,device99,grant_usage=1",|' ||
    fail "xl could not create the guest"

# xl does not wait for the backends of such devices, and the guest does not wait for a refused one,
# so only the daemon reports the refusal.
why='virtio device type "virtio,device99" is not supported'
for report in "$(cat $daemon_log)" "$(xen-virtiod stat)" \
    "$(xenstore-read "backend/virtio/$domid/4/error")"; do
    case $report in
    *"$why"*) ;;
    *) fail "the daemon does not report why it refused a device: $report" ;;
    esac
done

# The console: the guest echoes Dom0's input.
tty=$(xenstore-read "backend/virtio/$domid/2/tty")
wait_console $name 40 'lab: console'
head -c 65536 /dev/urandom >typed
cat typed >"$tty" &
timeout 40 head -c 65536 <"$tty" >printed ||
    fail "the console returned $(wc -c <printed) bytes of 65536"
busybox cmp typed printed || fail "the console changed the data"

# The size of the terminal's window, for which the guest waits.
stty -F "$tty" rows 40 cols 100
wait_console $name 40 'lab: size'
[ "$(guest_said $name size)" = '40 100' ] || fail "rows and columns are $(guest_said $name size)"

# The further port: more data than all buffers on the way hold, in both directions at once.
head -c 2M /dev/urandom >told
port=$(xenstore-read "backend/virtio/$domid/2/port/1/socket")
mkfifo words
socat -t 60 - "UNIX-CONNECT:$port" <told >words &
program=$!
timeout 60 head -c 2M <words >heard || fail "the agent sent $(wc -c <heard) bytes of 2 MiB"
wait_console $name 60 'lab: agent'
kill $program
[ "$(guest_said $name told)" = "$(sha256sum <told)" ] || fail "the agent received other data"
[ "$(guest_said $name heard)" = "$(sha256sum <heard)" ] ||
    fail "Dom0 received other data from the agent"

# Streams: a program in Dom0 connects to the guest, then the guest to a program in Dom0. Each side
# sends a file, shuts down sending, and receives the other's file to the end.
socket=$(xenstore-read "backend/virtio/$domid/3/socket")
[ "$socket" = /run/xen-virtiod/vsock/$name-3.sock ] || fail "the socket is $socket"
head -c 4M /dev/urandom >down
socat -t 40 "UNIX-LISTEN:${socket}_2000" - <down >up-2 &
listener=$!
wait_console $name 40 'probe: listening on 1234:1000'
{ echo 'CONNECT 1000' && cat down; } | socat -t 40 - "UNIX-CONNECT:$socket" >said
{ read -r ok && cat >up-1; } <said
[ "${ok% *}" = OK ] || fail "the connection to the guest failed: $ok"
wait_console $name 40 'lab: streams'
wait $listener
[ "$(guest_said $name down-1)" = "$(sha256sum <down)" ] ||
    fail "stream 1: the guest received other data"
[ "$(guest_said $name down-2)" = "$(sha256sum <down)" ] ||
    fail "stream 2: the guest received other data"
[ "$(guest_said $name up)" = "$(sha256sum <up-1)" ] || fail "stream 1: Dom0 received other data"
[ "$(guest_said $name up)" = "$(sha256sum <up-2)" ] || fail "stream 2: Dom0 received other data"

wait_console $name 40 'lab: entropy'
# counted DEVICE WORD: prints a value from the section of a device of the guest in `stat`.
counted() {
    xen-virtiod stat | sed -n "/^domain $domid virtio.$1[: ]/,/^domain/s/^  $2 *//p"
}
[ "$(counted 0 limits)" = '2048 B/s' ] || fail "device 0 has the limits $(counted 0 limits)"
[ "$(counted 1 limits)" = unlimited ] || fail "device 1 has the limits $(counted 1 limits)"
[ -n "$(counted 0 waits)" ] || fail "device 0 never waited for its rate"
[ -z "$(counted 1 waits)" ] || fail "device 1 waited, $(counted 1 waits)"
[ "$(counted 3 streams)" = '2 made, 0 open' ] || fail "device 3's streams: $(counted 3 streams)"
[ "$(counted 3 bytes)" = "$((8 << 20)) read, $((8 << 20)) written" ] ||
    fail "device 3's bytes: $(counted 3 bytes)"
end_guest $name 30
check_nothing_mapped
