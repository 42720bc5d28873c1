# Measures disks beside a xen-blkback whose limits, and those of xen-blkfront, are raised: requests
# of 512 KiB, a ring of 4 pages, all grants persistent, and a queue for each of two virtual
# processors. A PVH guest has one: see XEN_OPTIONS in tests/lab/src/boot/machine.rs. xen-blkfront
# allocates a page for each segment of each request that fits in a ring, 65 MiB here, so higher
# limits would need more memory and grants than the guest has.
# guests: pv pvh
# limit: 1200
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

# Sets blkback's parameters, each NAME=VALUE, and prints their old values likewise.
set_parameters() {
    local parameter file
    for parameter; do
        file=/sys/module/xen_blkback/parameters/${parameter%%=*}
        echo "${parameter%%=*}=$(cat "$file")"
        echo "${parameter#*=}" >"$file"
    done
}

modprobe xen-blkback
old=$(set_parameters max_queues=4 max_persistent_grants=17000 max_buffer_pages=17000)
trap 'set_parameters $old >/dev/null' EXIT
export BLKFRONT='max_indirect_segments=128 max_ring_page_order=2 max_queues=4'
vcpus=2
[ "$GUEST" = pv ] || vcpus=1
measure_disks 1100 "s|^vcpus = .*|vcpus = $vcpus\nmax_grant_frames = 256|" "s|^memory = .*|memory = 1024|"
