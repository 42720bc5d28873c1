# The driver domain: serves a guest's disk from its own disk, and its interface by a bridge to
# Dom0's, until Dom0 destroys it or sends a line.
for module in xen-gntdev xen-evtchn xen-blkfront bridge tun virtio_net; do
    load $module
done
mkdir /run
wait_for "the disk /dev/xvda" 20 test -b /dev/xvda
wait_for "the interface eth0" 20 test -e /sys/class/net/eth0
ip link add xenbr0 type bridge
ip link set eth0 master xenbr0
ip link set eth0 up
ip link set xenbr0 up
xen-virtiod >/dev/console 2>&1 &
wait_for "xen-virtiod to answer" 20 xen-virtiod stat >/dev/null
echo "lab: serving"
read -r _
