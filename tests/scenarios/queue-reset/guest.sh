# Serves random bytes over HTTP, and sets the rings of its network device to the sizes that Dom0
# requests, during a transfer.
rings() {
    /usr/sbin/ethtool -g eth0 | sed -n '/^Current/,$s/^\(RX\|TX\):[[:space:]]*//p' | xargs
}

load virtio_net
wait_for "the network device eth0" 20 test -e /sys/class/net/eth0
ip address add 10.9.2.2/24 dev eth0
ip link set eth0 up
mkdir /www
dd if=/dev/urandom of=/www/noise bs=1M count=4 2>/dev/null
httpd -p 80 -h /www
echo "lab: features $(cat /sys/class/net/eth0/device/features)"
echo "lab: rings-0 $(rings)"
echo "lab: noise $(sha256sum </www/noise)"
echo "lab: serving"

while read -r word turn rx tx; do
    [ "$word" = resize ] || break
    wget -q -T 20 -O /tmp/fetched http://10.9.2.1/noise &
    fetch=$!
    /usr/sbin/ethtool -G eth0 rx "$rx" tx "$tx"
    echo "lab: rings-$turn $(rings)"
    wait $fetch
    echo "lab: fetch-$turn $(sha256sum </tmp/fetched)"
done
