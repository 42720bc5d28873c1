# Measures a disk while a TCP stream leaves the same guest: both by xen-virtiod, and by xen-blkback
# and xen-netback.
# guests: pv pvh
# limit: 900
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh
. /lab/scenarios/bench-net/bridges.sh

make_bridges 2
make_files 2
make_left
make_jobs jobs.cpio 'ours-file xvdm' 'blkback-file xvde' 'results xvdo' 'programs xvdp' -- \
    'eth0 virtio_net 0@ours' 'eth1 xen-netfront 1@netback'
make_initrd initrd /lab/scenarios/bench-beside/guest.sh /lab/files/modules.cpio jobs.cpio
name=$GUEST-bench-beside
disks="$(own xvdm /run/bench/0), $(blkback xvde /run/bench/1), $(own xvdo $LEFT), $(programs own)"
start_bench "$name" "$disks" "s|^disk = .*|&\\n$(network)|"
end_guest "$name" 800
take_left "$RESULTS"
machine_facts "$name"
