# random DEVICE BYTES: reads two blocks from one entropy device, and checks that they differ and are
# not zeros.
random() {
    echo "$1" >/sys/class/misc/hw_random/rng_current
    [ "$(cat /sys/class/misc/hw_random/rng_current)" = "$1" ]
    for block in 1 2; do
        head -c "$2" /dev/hwrng >/tmp/block$block
        # One byte in 256 is zero by chance.
        [ "$(tr -d '\0' </tmp/block$block | wc -c)" -gt $(($2 * 9 / 10)) ]
    done
    ! cmp -s /tmp/block1 /tmp/block2 || exit 1
}

wait_for "the console /dev/hvc1" 20 test -c /dev/hvc1
exec 3<>/dev/hvc1
stty raw -echo <&3
echo "lab: console"
head -c 65536 <&3 >/tmp/typed
cat /tmp/typed >&3

# The console has no size until the device reports one.
wait_for "the console's size" 20 sh -c '[ -n "$(stty size <&3 2>/dev/null)" ]'
echo "lab: size $(stty size <&3)"

port=$(grep -lx org.example.agent /sys/class/virtio-ports/*/name)
port=${port%/name}
exec 4<>"/dev/${port##*/}"
head -c $((2 << 20)) /dev/urandom >/tmp/heard
cat /tmp/heard >&4 &
# Until a program opens the host's end, the port reads as end of file.
wait_for "a program at the port" 40 \
    sh -c 'dd bs=1 count=1 <&4 >/tmp/told 2>/dev/null && [ -s /tmp/told ]'
head -c $(((2 << 20) - 1)) <&4 >>/tmp/told
wait $!
echo "lab: told $(sha256sum </tmp/told)"
echo "lab: heard $(sha256sum </tmp/heard)"
echo "lab: agent"
exec 4>&-

head -c $((4 << 20)) /dev/urandom >/tmp/up
load vmw_vsock_virtio_transport
probe vsock-listen 1000 </tmp/up >/tmp/down-1
probe vsock-connect 2 2000 </tmp/up >/tmp/down-2
! probe vsock-connect 2 2001 </dev/null 2>/tmp/refused || exit 1
grep -q 'cannot connect to 2:2001' /tmp/refused
echo "lab: up $(sha256sum </tmp/up)"
echo "lab: down-1 $(sha256sum </tmp/down-1)"
echo "lab: down-2 $(sha256sum </tmp/down-2)"
echo "lab: streams"

load virtio-rng
wait_for "/dev/hwrng" 20 test -c /dev/hwrng
random virtio_rng.1 8192
random virtio_rng.0 2048
echo "lab: entropy"
