# Two guests and Dom0 on a bridge: data in all directions, a persistent MAC address, several queues,
# segmentation offload, a link that goes down, a guest that is locked to its addresses, one that
# receives nothing, and a killed daemon.
# limit: 180
# guests: pv
. /lab/dom0/lib.sh

first_uuid=6f1d3a52-8c47-4e0b-9a55-2d7b90c1e4f3
second_uuid=0e9c8a77-1d0b-4f6e-b3a2-5c4d3e2f1a00
fetches=0

clean_up() {
    kill "$server" 2>/dev/null || true
    rm -f /etc/xen-virtiod.toml
    ip link delete xenbr0
}

# start NAME ADDRESS UUID SED…: starts a guest.
start() {
    local name=$1 address=$2 uuid=$3
    shift 3
    { echo "address=$address"; cat /lab/scenarios/net/guest.sh; } >script
    make_initrd "$name" script
    start_example net-pv "$name" "$PWD/$name" "s|^uuid = .*|uuid = \"$uuid\"|" "$@" ||
        fail "xl could not create the guest $name"
}

# address_of UUID: prints the MAC address of a guest's first device.
address_of() {
    local digits rest
    digits=$(printf %s "$1/0" | sha256sum | cut -c1-12)
    rest=${digits#??}
    printf '%02x%s\n' $((0x${digits%"$rest"} & 0xfc | 2)) "$rest" | sed 's/../&:/g; s/:$//'
}

# check_address NAME DOMID UUID: checks that the daemon published the right MAC address, and that
# the guest has it.
check_address() {
    local published
    published=$(xenstore-read "/local/domain/0/backend/virtio/$2/0/mac")
    [ "$published" = "$(address_of "$3")" ] ||
        fail "$1's address is $published, not $(address_of "$3")"
    [ "$(guest_said "$1" mac)" = "$published" ] ||
        fail "$1 has the address $(guest_said "$1" mac), not $published"
}

# has_features NAME BIT…: checks that the guest's driver accepted these features.
has_features() {
    local name=$1 bit
    shift
    for bit; do
        [ "$(guest_said "$name" features | cut -c $((bit + 1)))" = 1 ] ||
            fail "$name has no feature $bit: $(guest_said "$name" features)"
    done
}

# fetched NAME DOMID HOST SUM: checks that the guest can fetch data with this checksum from a host.
fetched() {
    fetches=$((fetches + 1))
    tell_guest "$2" "fetch $3 $fetches"
    wait_console "$1" 60 "lab: fetch-$fetches "
    [ "$(guest_said "$1" "fetch-$fetches")" = "$4" ] || fail "$1 received other data from $3"
}

# serves HOST SUM: checks that Dom0 can fetch data with this checksum from a guest.
serves() {
    [ "$(busybox wget -q -T 20 -O - "http://$1/noise" | sha256sum)" = "$2" ] ||
        fail "Dom0 received other data from $1"
}

# mean DOMID KIND BYTES: prints the average size of a packet in bytes, from the daemon's counters
# for the domain.
mean() {
    xen-virtiod stat --json | sed 's/{"domid"/\n&/g' | grep "^{\"domid\":$1," |
        sed "s/.*\"requests\":{[^}]*\"$2\":\([0-9]*\).*\"bytes\":{[^}]*\"$3\":\([0-9]*\).*/\2 \1/" |
        awk '{ print int($1 / ($2 + 1)) }'
}

for module in tun bridge; do
    modprobe $module
done
ip link add xenbr0 type bridge
ip address add 10.9.0.1/24 dev xenbr0
ip link set xenbr0 up
echo '[domain.pv-net-1.virtio.0.net]
queues = 2
[domain.pv-net-2.virtio.0.net]
lock-addresses = ["10.9.0.3"]' >/etc/xen-virtiod.toml
xen-virtiod check
mkdir www
head -c 2M /dev/urandom >www/noise
ours=$(sha256sum <www/noise)
busybox httpd -f -p 10.9.0.1:80 -h www &
server=$!
trap clean_up EXIT

start pv-net-1 10.9.0.2 $first_uuid 's|^vcpus = .*|vcpus = 2|'
first=$domid
start pv-net-2 10.9.0.3 $second_uuid
second=$domid
wait_console pv-net-1 40 'lab: serving'
wait_console pv-net-2 40 'lab: serving'

check_address pv-net-1 "$first" $first_uuid
check_address pv-net-2 "$second" $second_uuid
[ "$(guest_said pv-net-1 queues)" = 'rx-0 rx-1 tx-0 tx-1 ' ] ||
    fail "queues of 1: $(guest_said pv-net-1 queues)"
[ "$(guest_said pv-net-2 queues)" = 'rx-0 tx-0 ' ] ||
    fail "queues of 2: $(guest_said pv-net-2 queues)"
# Both: checksums, MTU, MAC address, segmentation in both directions, mergeable buffers, link
# status. The first guest: several queues.
for name in pv-net-1 pv-net-2; do
    has_features $name 0 1 3 5 7 8 11 12 15 16
done
has_features pv-net-1 17 22
ip -o link show master xenbr0 | grep -q "virtio$first.0" ||
    fail "virtio$first.0 is not a port of xenbr0"

noise_1=$(guest_said pv-net-1 noise) noise_2=$(guest_said pv-net-2 noise)
fetched pv-net-1 "$first" 10.9.0.3 "$noise_2"
fetched pv-net-2 "$second" 10.9.0.2 "$noise_1"
fetched pv-net-1 "$first" 10.9.0.1 "$ours"
fetched pv-net-2 "$second" 10.9.0.1 "$ours"
serves 10.9.0.2 "$noise_1"
serves 10.9.0.3 "$noise_2"
for kind in 'read read' 'write written'; do
    # shellcheck disable=SC2086 # two words
    mean=$(mean "$first" $kind)
    echo "bytes per packet, $kind: $mean"
    [ "$mean" -gt 1514 ] ||
        fail "packets have $mean bytes on average: segmentation is not offloaded"
done

# The link.
tell_guest "$first" link
ip link set "virtio$first.0" down
wait_console pv-net-1 20 'lab: link down'
ip link set "virtio$first.0" up
wait_console pv-net-1 20 'lab: link up'
fetched pv-net-1 "$first" 10.9.0.3 "$noise_2"

# A guest that lies about its addresses, and one that cannot.
tell_guest "$first" 'lie 10.9.0.71 1'
tell_guest "$second" 'lie 10.9.0.72 1'
for name in pv-net-1 pv-net-2; do
    wait_console $name 30 'lab: lie-1 '
done
[ "$(guest_said pv-net-1 lie-1)" = 'answered answered' ] ||
    fail "a guest that may lie has no answers: $(guest_said pv-net-1 lie-1)"
[ "$(guest_said pv-net-2 lie-1)" = 'silence refused' ] ||
    fail "a guest that is locked to its addresses has answers: $(guest_said pv-net-2 lie-1)"
ip neighbour show | grep -q '10\.9\.0\.72 .*lladdr' && fail "Dom0 has the address of a liar"
serves 10.9.0.3 "$noise_2"

# A guest that receives nothing: Dom0's kernel drops its packets, and the daemon does not grow.
ip neighbour replace 10.9.0.3 lladdr "$(address_of $second_uuid)" dev xenbr0 nud permanent
xl pause "$second"
before=$(daemon_resident)
head -c 8M /dev/zero | socat -b 1400 -u - UDP-SENDTO:10.9.0.3:9
after=$(daemon_resident)
lost=$(cat "/sys/class/net/virtio$second.0/statistics/tx_dropped")
echo "resident before the flood $before kB, after it $after kB; $lost packets lost"
[ "$lost" -gt 1000 ] || fail "Dom0's kernel dropped only $lost packets to a paused guest"
[ $((after - before)) -lt 2048 ] || fail "xen-virtiod grew from $before to $after kB"
fetched pv-net-1 "$first" 10.9.0.1 "$ours"
xl unpause "$second"
serves 10.9.0.3 "$noise_2"

# Kill the guest's process during transfers, then the daemon, and stop that once: the guest's
# transfers go on, at the same interface, which stays its bridge's port. While no daemon runs, no
# grant is mapped.
tell_guest "$first" 'flow 10.9.0.1'
wait_console pv-net-1 60 'lab: flowing 1'
index=$(cat "/sys/class/net/virtio$first.0/ifindex")
kill -9 "$(guest_process "$first")"
wait_console pv-net-1 60 "lab: flowing $(($(guest_said pv-net-1 flowing) + 2))"
for signal in KILL TERM; do
    processes=$(daemon_processes)
    kill "-$signal" "$(cat $daemon_pid)"
    for process in $processes; do
        timeout 20 tail --pid="$process" -s 0.1 -f /dev/null || fail "process $process did not end"
    done
    for guest in "$first" "$second"; do
        [ -z "$(mapped_grants "$guest")" ] ||
            fail "grants of domain $guest are mapped: $(mapped_grants "$guest")"
    done
    start_daemon xen-virtiod
    wait_console pv-net-1 60 "lab: flowing $(($(guest_said pv-net-1 flowing) + 2))"
done
[ "$(cat "/sys/class/net/virtio$first.0/ifindex")" = "$index" ] || fail "the interface is another one"
[ -e "/sys/class/net/xenbr0/brif/virtio$first.0" ] || fail "the interface has left its bridge"
serves 10.9.0.3 "$noise_2"
# A guest that is destroyed while no daemon runs: the next daemon removes its interface.
stop_daemon
xl destroy "$second"
start_daemon xen-virtiod
wait_for "virtio$second.0 to be removed" 20 "[ ! -e /sys/class/net/virtio$second.0 ]" \
    sh -c 'while echo; do sleep 0.1; done'
xl destroy "$first"
for guest in "$first" "$second"; do
    wait_gone "$guest" 15
    [ ! -e "/sys/class/net/virtio$guest.0" ] || fail "virtio$guest.0 still exists"
done

# A guest with the same UUID has the same MAC address.
start pv-net-again 10.9.0.2 $first_uuid
wait_console pv-net-again 40 'lab: serving'
check_address pv-net-again "$domid" $first_uuid
fetched pv-net-again "$domid" 10.9.0.1 "$ours"
tell_guest "$domid" end
end_guest pv-net-again 30
check_nothing_mapped
