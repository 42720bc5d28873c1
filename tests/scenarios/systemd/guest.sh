# Uses a device of each kind: disks, network, console, vsock, entropy.
for disk in vda vdb vdc; do
    wait_for "the disk /dev/$disk" 20 test -b /dev/$disk
    dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null
    dd if=/tmp/noise of=/dev/$disk bs=64k conv=fsync 2>/dev/null
    echo "lab: $disk $(sha256sum </tmp/noise)"
done

load virtio_net
wait_for "the network device eth0" 20 test -e /sys/class/net/eth0
ip address add 10.9.2.2/24 dev eth0
ip link set eth0 up
wait_for "the host's web server" 20 wget -q -T 5 -O /tmp/fetched http://10.9.2.1/noise
echo "lab: fetched $(sha256sum </tmp/fetched)"

wait_for "the console /dev/hvc1" 20 test -c /dev/hvc1
exec 3<>/dev/hvc1
stty raw -echo <&3
echo "lab: console"
head -c 4096 <&3 >/tmp/typed
cat /tmp/typed >&3

load vmw_vsock_virtio_transport
probe vsock-connect 2 2000 </tmp/noise >/tmp/down
echo "lab: up $(sha256sum </tmp/noise)"
echo "lab: down $(sha256sum </tmp/down)"

load virtio-rng
[ "$(head -c 64 /dev/hwrng | wc -c)" = 64 ]
echo "lab: used"
read -r _
