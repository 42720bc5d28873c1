# Serves random bytes over HTTP, and runs the commands that Dom0 writes to the console. Dom0
# prepends a line `address=ADDRESS`.

carrier() {
    [ "$(cat /sys/class/net/eth0/carrier)" = "$1" ]
}

# fetch HOST: prints the checksum of the host's file. Not through a pipe, so that an incomplete file
# gets no checksum.
fetch() {
    wget -q -T 20 -O /tmp/fetched "http://$1/noise"
    sha256sum </tmp/fetched
}

# answers OPTION…: prints whether Dom0 answers a ping with these options.
answers() {
    if ping -q -c 2 -W 2 "$@" 10.9.0.1 >/dev/null; then echo answered; else echo silence; fi
}

# lie HOST: prints whether Dom0 answers packets from another IP address, and from another MAC
# address.
lie() {
    own=$(cat /sys/class/net/eth0/address)
    ip address add "$1/32" dev eth0
    answers -I "$1"
    ip address delete "$1/32" dev eth0
    # The device of a locked guest refuses the address.
    if ip link set eth0 address 02:00:00:00:00:99 2>/dev/null; then answers; else echo refused; fi
    ip link set eth0 address "$own"
}

load virtio_net
wait_for "the network device eth0" 20 test -e /sys/class/net/eth0
ip address add "${address:?}/24" dev eth0
ip link set eth0 up
wait_for "the link" 10 carrier 1

mkdir /www
dd if=/dev/urandom of=/www/noise bs=1M count=2 2>/dev/null
httpd -p 80 -h /www
echo "lab: mac $(cat /sys/class/net/eth0/address)"
echo "lab: mtu $(cat /sys/class/net/eth0/mtu)"
echo "lab: queues $(ls /sys/class/net/eth0/queues | tr '\n' ' ')"
echo "lab: features $(cat /sys/class/net/eth0/device/features)"
echo "lab: noise $(sha256sum </www/noise)"
echo "lab: serving"

while read -r word host number; do
    case $word in
    fetch)
        echo "lab: fetch-$number $(fetch "$host")"
        ;;
    lie)
        # shellcheck disable=SC2046 # two words
        echo "lab: lie-$number" $(lie "$host")
        ;;
    link)
        wait_for "the link to be down" 10 carrier 0
        echo "lab: link down"
        wait_for "the link to be up again" 10 carrier 1
        echo "lab: link up"
        ;;
    flow)
        turn=0
        while wget -q -T 20 -O /dev/null "http://$host/noise"; do
            turn=$((turn + 1))
            echo "lab: flowing $turn"
        done
        ;;
    end) break ;;
    esac
done
