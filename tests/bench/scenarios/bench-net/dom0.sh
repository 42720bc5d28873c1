# Measures network interfaces of one guest alternately, each at a bridge of its own in Dom0: one of
# xen-virtiod's, one of xen-netback's and, for HVM guests, QEMU's emulated e1000 and rtl8139. HVM
# guests have a kernel with drivers for these.
# guests: pv pvh hvm
# limit: 1800
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh
. /lab/scenarios/bench-net/bridges.sh

make_bridges 4
make_left
name=$GUEST-bench-net
disks="$(own xvdo $LEFT), $(programs own)"
lines=$(network "") modules=/lab/files/modules.cpio
set -- 'eth0 virtio_net 0@ours' 'eth1 xen-netfront 1@netback'
kernel=
if [ "$GUEST" = hvm ]; then
    guest_files=/lab/files/cards modules=/lab/files/cards/modules.cpio
    # Interfaces get their names in the order in which their drivers are loaded.
    set -- "$@" 'eth2 e1000 2@e1000' 'eth3 8139cp 3@rtl8139'
    # The option keeps the kernel from unplugging the emulated cards.
    kernel=' xen_emul_unplug=unnecessary'
    lines="$lines\\ndevice_model_args_hvm = [$(card e1000 2), $(card rtl8139 3)]"
fi
make_jobs jobs.cpio 'results xvdo' 'programs xvdp' -- "$@"
measuring_script bridge >script
make_initrd initrd script "$modules" jobs.cpio
start_bench "$name" "$disks" "s|^disk = .*|&\\n$lines|" "s|panic=-1|&$kernel|"
end_guest "$name" 1700
take_left "$RESULTS"
machine_facts "$name"
