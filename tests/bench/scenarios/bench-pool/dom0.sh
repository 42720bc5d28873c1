# Measures the benefit of the pool by its size: the guest loads the driver of one xen-virtiod disk
# with pools of several sizes alternately. Without a pool, the driver grants every buffer for its
# request.
# guests: pvh
# limit: 600
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

make_files 1
make_left
# xen-blkback serves the other disks, so their driver stays loaded.
disks="$(own xvdm /run/bench/0), $(blkback xvdo $LEFT), $(programs blkback)"
make_jobs jobs.cpio 'ours-pool xvdm' 'results xvdo' 'programs xvdp'
make_initrd initrd /lab/scenarios/bench-pool/guest.sh /lab/files/modules.cpio jobs.cpio
name=$GUEST-bench-pool
start_bench "$name" "$disks"
end_guest "$name" 500
take_left "$RESULTS"
machine_facts "$name"
