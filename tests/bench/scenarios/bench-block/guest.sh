# Finds each disk by the name that Dom0 gave it, has fio do its rounds, and leaves what fio said on the last
# disk.
. /disks.sh

load xen-blkfront
if [ "$(cat /sys/hypervisor/guest_type)" = HVM ] && [ -d /sys/bus/pci/devices/0000:00:01.1 ]; then
    # In this order, so that the names are known: the first is AHCI's.
    load sd_mod
    load ahci
    wait_for "the AHCI disk" 30 test -b /dev/sda
    load ata_piix
fi
find_disks
for disk in /dev/bench/*; do
    queue=/sys/block/$(basename "$(readlink "$disk")")/queue
    echo "lab: disk ${disk##*/} $(readlink "$disk") scheduler $(cat "$queue/scheduler")" \
        "requests $(cat "$queue/nr_requests") largest $(cat "$queue/max_sectors_kb") cache $(cat "$queue/write_cache")"
done

mkdir /tmp/rounds
round=1
while read -r order; do
    echo "lab: round $round $order"
    fio --eta=never --output-format=json --output="/tmp/rounds/$round.json" "/jobs/$order.fio"
    round=$((round + 1))
done </jobs/rounds
leave rounds
