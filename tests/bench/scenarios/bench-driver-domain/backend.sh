# The driver domain: has the interfaces of xen-virtiod at one bridge, and those of xen-netback at
# another, until Dom0 sends a line.
for module in xen-gntdev xen-evtchn bridge tun xen-netback; do
    load $module
done
mkdir /run
for bridge in xenbr0 xenbr1; do
    ip link add $bridge type bridge
    ip link set $bridge up
done
xen-virtiod >/dev/console 2>&1 &
wait_for "xen-virtiod to answer" 20 xen-virtiod stat >/dev/null
# Until both have come.
until [ "$(ls -d /sys/class/net/vif*/master 2>/dev/null | wc -l)" = 2 ]; do
    for vif in /sys/class/net/vif*; do
        [ ! -e "$vif" ] || [ -e "$vif/master" ] || ip link set "${vif##*/}" master xenbr1 up
    done
    sleep 0.2
done &
echo "lab: serving"
read -r _
