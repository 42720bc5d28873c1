# Does each work with each interface, in reverse order in every second round, and writes the tools'
# output to the disk for results.
. /disks.sh

# interface NAME MODULE BRIDGE@SERVER: loads the module and configures its interface, which is at
# that bridge.
interface() {
    load "$2"
    wait_for "the interface $1" 20 test -e "/sys/class/net/$1"
    ip address add "10.9.${3%@*}.2/24" dev "$1"
    ip link set "$1" up
    wait_for "the other end of $1" 20 ping -q -c 1 -W 1 "10.9.${3%@*}.1"
}

# measured FILE OPTION…: runs iperf3 and writes its output to FILE. It tries up to three times,
# because the server may still be finishing the last test.
measured() {
    file=$1 tries=3
    shift
    until tool iperf3 -J -t 1 "$@" >"$file"; do
        tries=$((tries - 1))
        echo "lab: iperf3 failed: $(grep '"error"' "$file")"
        [ $tries != 0 ] || return 1
        sleep 1
    done
}

load xen-blkfront
find_disks
ip link set lo up
forward='' backward=''
while read -r name module server; do
    interface "$name" "$module" "$server"
    forward="$forward $server" backward="$server $backward"
done </jobs/interfaces
while read -r round pass; do
    echo "lab: round $round $pass"
    servers=$forward
    [ "$pass" != backward ] || servers=$backward
    while read -r work options; do
        for server in $servers; do
            to=10.9.${server%@*}.1 result=/tmp/results/figures/$round-$work@${server#*@}-bridge
            case $work in
            tcp-rr) probe round-trips "$to:7" 1000 >"$result.rate" ;;
            *)
                # shellcheck disable=SC2086 # options are words
                measured "$result.json" -c "$to" $options
                ;;
            esac
            echo "lab: did $work $server at $(cut -d ' ' -f 1 /proc/uptime)"
        done
    done </jobs/net
done </jobs/passes
leave
