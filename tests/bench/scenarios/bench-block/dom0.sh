# Disks of one guest, each served by somebody else, measured in turns: on RAM disks of Dom0's, one a server and
# all alike, and on null_blk, which moves no data. xen-virtiod and xen-blkback serve every guest; QEMU's qdisk PV and
# PVH guests, and the disks that QEMU emulates an HVM guest.
# guests: pv pvh hvm
# limit: 1500
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

make_targets
make_disk results.img 32
disks="$(own xvdm /dev/ram0), $(blkback xvde /dev/ram1), $(own xvdo "$PWD/results.img"), $(programs)"
case $GUEST in
hvm)
    # The guest's kernel is told not to unplug what QEMU emulates.
    set -- "s|panic=-1|& xen_emul_unplug=unnecessary|" \
        "s|^disk = .*|disk = [$disks]\ndevice_model_args_hvm = [$(emulated)]|"
    make_jobs jobs.cpio hvm 'ours-ram xvdm' 'blkback-ram xvde' 'virtio-pci-ram virtio-pci' \
        'nvme-ram nvme0n1' 'ahci-ram sda' 'ide-ram sdb' 'results xvdo' 'programs xvdp'
    ;;
*)
    disks="$disks, $(qdisk xvdi /dev/ram2), $(own xvdn /dev/nullb0), $(blkback xvdf /dev/nullb1)"
    set -- "s|^disk = .*|disk = [$disks]|"
    make_jobs jobs.cpio "$GUEST" 'ours-ram xvdm' 'blkback-ram xvde' 'qdisk-ram xvdi' \
        'ours-null xvdn' 'blkback-null xvdf' 'results xvdo' 'programs xvdp'
    ;;
esac
make_initrd initrd /lab/scenarios/bench-block/guest.sh /lab/files/modules.cpio jobs.cpio \
    $(tree)
name=$GUEST-bench-block
start_example "blk-$GUEST" $name "$PWD/initrd" "s|^memory = .*|memory = 512|" "$@" ||
    fail "xl could not create the guest"
end_guest $name 1400
xen-virtiod stat --json >"$RESULTS/counters"
tar -x -C "$RESULTS" -f results.img
machine_facts $name
