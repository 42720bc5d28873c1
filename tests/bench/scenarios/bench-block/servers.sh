# The disks that are compared, and what they are on. In xl's words, a line of `disk` each.

# make_targets: RAM disks of 64 MiB with every page there, and disks that move no data.
make_targets() {
    modprobe brd rd_nr=8 rd_size=65536
    modprobe null_blk nr_devices=4 gb=1 memory_backed=0
    modprobe xen-blkback
    for target in 0 1 2 3 4 5 6 7; do
        dd if=/dev/zero of=/dev/ram$target bs=1M count=64 oflag=direct 2>/dev/null
    done
}

# own VDEV TARGET: served by xen-virtiod.
own() {
    echo "\"format=raw,vdev=$1,access=rw,backendtype=standalone,specification=virtio,grant_usage=1,target=$2\""
}

# blkback VDEV TARGET: served by Dom0's kernel, as it comes: with persistent grants.
blkback() {
    chmod +x /lab/scenarios/bench-block/hotplug
    echo "\"format=raw,vdev=$1,access=rw,backendtype=phy,script=/lab/scenarios/bench-block/hotplug,target=$2\""
}

# qdisk VDEV TARGET: served by a QEMU in Dom0, by Xen's own block protocol.
qdisk() {
    echo "\"format=raw,vdev=$1,access=rw,backendtype=qdisk,target=$2\""
}

# emulated: disks that an HVM guest's QEMU emulates, as arguments for it in xl's words; with the cache that xl
# gives those of its own.
emulated() {
    echo '"-device","ich9-ahci,id=ahci",' \
        "$(drive ide 2),\"-device\",\"ide-hd,drive=ide,bus=ide.0\"," \
        "$(drive ahci 3),\"-device\",\"ide-hd,drive=ahci,bus=ahci.0\"," \
        "$(drive nvme 4),\"-device\",\"nvme,drive=nvme,serial=nvme\"," \
        "$(drive virtio 5),\"-device\",\"virtio-blk-pci,drive=virtio,serial=virtio-pci\""
}

# drive ID NUMBER: the RAM disk of that number.
drive() {
    echo "\"-drive\",\"file=/dev/ram$2,if=none,id=$1,format=raw,cache=writeback\""
}

# netback BRIDGE: a network interface served by Dom0's kernel, in xl's words.
netback() {
    echo "\"type=vif,bridge=$1,script=/lab/scenarios/bench-net/hotplug\""
}

# make_jobs FILE GUEST LINE…: an archive of the jobs for a guest of that kind; each LINE is a disk that they
# name and the name by which the guest finds it.
make_jobs() {
    local archive=$PWD/$1 guest=$2 staging
    shift 2
    staging=$(mktemp -d)
    cp -r "/lab/files/jobs/$guest" "$staging/jobs"
    cp /lab/scenarios/bench-block/disks.sh "$staging"
    printf '%s\n' "$@" >"$staging/jobs/disks"
    (cd "$staging" && find . | busybox cpio -o -H newc 2>/dev/null) >"$archive"
    rm -r "$staging"
}

# unpack ARCHIVE DIRECTORY: a program and its libraries, for Dom0.
unpack() {
    mkdir -p "$2/bin" "$2/lib"
    (cd "$2" && busybox cpio -i -d 2>/dev/null) <"$1"
}

# machine_facts NAME: what the guest NAME was measured on.
machine_facts() {
    {
        xl info | sed -n 's/^xen_version *: /Xen: /p'
        echo "Dom0: Linux $(uname -r), $(xl info | sed -n 's/^virt_caps *: /hypervisor offers /p')"
        echo "guest: $(guest_said "$1" kernel)"
        tr -d '\r' <"$consoles/guest-$1.log" | sed -n "s/^.*lab: disk \([^ ]*\) /$GUEST disk \1: /p"
    } >"$RESULTS/machine"
}
