# Functions for measured guests and their network interfaces.

# interface NAME MODULE ADDRESS: loads the module and configures its interface.
interface() {
    load "$2"
    wait_for "the interface $1" 20 test -e "/sys/class/net/$1"
    ip address add "$3/24" dev "$1"
    ip link set "$1" up
}

# find_interfaces: configures the interfaces that Dom0 named, and sets $forward and $backward to
# their BRIDGE@SERVER, in both orders.
find_interfaces() {
    forward='' backward=''
    ip link set lo up
    while read -r name module server; do
        interface "$name" "$module" "10.9.${server%@*}.2"
        wait_for "the other end of $name" 20 ping -q -c 1 -W 1 "10.9.${server%@*}.1"
        forward="$forward $server" backward="$server $backward"
    done </jobs/interfaces
}

# measured FILE OPTION…: runs iperf3 and writes its output to FILE. It tries up to three times,
# because the server may still be finishing the last test.
measured() {
    file=$1 tries=3
    shift
    until tool iperf3 -J "$@" >"$file"; do
        tries=$((tries - 1))
        echo "lab: iperf3 failed: $(grep '"error"' "$file")"
        [ $tries != 0 ] || return 1
        sleep 1
    done
}
