# Measures disks of one guest, each with another server, alternately: on equal files in RAM, one for
# each server, and for PV and PVH guests also on RAM disks and on null_blk, which moves no data.
# xen-virtiod and xen-blkback serve every guest, QEMU's qdisk PV and PVH guests, and QEMU's emulated
# disks HVM guests.
# guests: pv pvh hvm
# limit: 1800
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

make_left
set --
disks="$(own xvdm /run/bench/0), $(blkback xvde /run/bench/1), $(own xvdo $LEFT), $(programs)"
case $GUEST in
hvm)
    make_files 6
    # The option keeps the guest's kernel from unplugging emulated disks.
    set -- "s|panic=-1|& xen_emul_unplug=unnecessary|" \
        "s|^disk = .*|&\ndevice_model_args_hvm = [$(emulated)]|"
    make_jobs jobs.cpio hvm 'ours-file xvdm' 'blkback-file xvde' 'virtio-pci-file virtio-pci' \
        'nvme-file nvme0n1' 'ahci-file sda' 'ide-file sdb' 'results xvdo' 'programs xvdp'
    ;;
*)
    make_files 3
    make_devices 2
    disks="$disks, $(qdisk xvdi /run/bench/2), $(own xvdk /dev/ram0), $(blkback xvdg /dev/ram1)"
    disks="$disks, $(own xvdn /dev/nullb0), $(blkback xvdf /dev/nullb1)"
    make_jobs jobs.cpio "$GUEST" 'ours-file xvdm' 'blkback-file xvde' 'qdisk-file xvdi' 'ours-ram xvdk' \
        'blkback-ram xvdg' 'ours-null xvdn' 'blkback-null xvdf' 'results xvdo' 'programs xvdp'
    ;;
esac
tree=$(tree)
make_initrd initrd /lab/scenarios/bench-block/guest.sh /lab/files/modules.cpio jobs.cpio \
    ${tree:+"$tree"}
name=$GUEST-bench-block
start_bench "$name" "$disks" "s|^memory = .*|memory = 512|" "$@"
end_guest $name 1700
xen-virtiod stat --json >"$RESULTS/counters"
take_left "$RESULTS"
machine_facts $name
