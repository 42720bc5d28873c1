# What the pool is worth, and how large it should be: one disk of xen-virtiod's, whose driver is
# loaded in turns with pools of several sizes; with none, every buffer is granted and mapped for its
# request.
# guests: pvh
# limit: 600
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

make_files 1
make_left
# The driver of the other disks stays.
disks="$(own xvdm /run/bench/0), $(blkback xvdo $LEFT), $(programs blkback)"
make_jobs jobs.cpio "$GUEST" 'ours-pool xvdm' 'results xvdo' 'programs xvdp'
make_initrd initrd /lab/scenarios/bench-pool/guest.sh /lab/files/modules.cpio jobs.cpio
name=$GUEST-bench-pool
start_bench "$name" "$disks"
end_guest "$name" 500
take_left "$RESULTS"
machine_facts "$name"
