# Computes or attacks, as Dom0 requests; the attacker is a process that drives the disk.
wait_for "the disk /dev/vda" 30 test -b /dev/vda
device=$(basename /sys/bus/xen/devices/virtio_disk-*)
echo "$device" >/sys/bus/xen/drivers/virtio_msg_xen/unbind
rmmod virtio_msg_xen
for module in xen-evtchn xen-gntalloc xenfs; do
    load $module
done
echo "lab: ready"
while read -r number kind seconds; do
    echo "lab: begin $number"
    case $kind in
    compute) timeout "$seconds" sh -c 'while :; do :; done' || true ;;
    attack)
        hostile-driver --attack "$seconds" "device/$(echo "$device" | tr - /)" </dev/null 2>&1 |
            sort | uniq -c | sort -rn | head -n 20 | sed 's/^/lab: attack /'
        ;;
    esac
    echo "lab: end $number"
done
