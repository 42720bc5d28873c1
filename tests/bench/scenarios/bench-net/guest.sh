# Does each work by each interface in turn, in every other round in reverse order, and leaves what the tools said
# on the disk for it.
. /disks.sh

# interface NAME MODULE SERVER: the module's interface, at SERVER's bridge.
interface() {
    load "$2"
    wait_for "the interface $1" 20 test -e "/sys/class/net/$1"
    ip address add "10.9.$3.2/24" dev "$1"
    ip link set "$1" up
    wait_for "the other end of $1" 20 ping -c 1 -W 1 "10.9.$3.1"
}

find_disks
ip link set lo up
interface eth0 virtio_net 0
interface eth1 xen-netfront 1
mkdir /tmp/net
round=1
while read -r order; do
    echo "lab: round $round $order"
    servers="0@ours 1@netback"
    [ "$order" = forward ] || servers="1@netback 0@ours"
    while read -r work options; do
        for server in $servers; do
            to=10.9.${server%@*}.1 result=/tmp/net/$round-$work@${server#*@}
            case $work in
            # shellcheck disable=SC2086 # options are words
            tcp-rr) probe round-trips "$to:7" 1500 >"$result.rate" ;;
            *) iperf3 -J -t 2 -c "$to" $options >"$result.json" ;;
            esac
        done
    done </jobs/net
    round=$((round + 1))
done </jobs/rounds
leave net
