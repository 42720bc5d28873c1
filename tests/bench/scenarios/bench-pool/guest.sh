# Reads and writes with each size of pool, in reverse order in every second round.
. /disks.sh

# reload PARAMETER…: loads the driver again, with another pool.
reload() {
    echo virtio_disk-51904 >/sys/bus/xen/drivers/virtio_msg_xen/unbind
    rmmod virtio_msg_xen
    insmod /lib/modules/virtio_msg_xen.ko "$@"
    rm /dev/bench/ours-pool
    wait_for "the disk with another pool" 20 known ours-pool xvdm
}

load xen-blkfront
find_disks
while read -r round pass; do
    pools='0 64 512 default'
    [ "$pass" != backward ] || pools='default 512 64 0'
    for pool in $pools; do
        case $pool in
        default) server=ours && reload ;;
        *) server=pool-$pool && reload "pool=$pool" ;;
        esac
        do_works "$server-pool" /dev/bench/ours-pool "$round-"
        echo "lab: did round $round, $server"
    done
done </jobs/passes
leave
