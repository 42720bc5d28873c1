# Pings Dom0 at 10.9.3.1 for each word from Dom0.
load virtio_net
wait_for "the network device eth0" 20 test -e /sys/class/net/eth0
ip address add 10.9.3.2/24 dev eth0
ip link set eth0 up
echo "lab: ready"
turn=0
while read -r word && [ "$word" = ping ]; do
    turn=$((turn + 1))
    if ping -q -c 3 -W 2 10.9.3.1 >/dev/null; then answer=answered; else answer=silence; fi
    echo "lab: ping-$turn $answer"
done
