# The disks that are compared, and what they are on. In xl's words, a line of `disk` each.

# A processor whose time stamp counter is not known to be invariant, as QEMU's, has Xen emulate its
# reading, ten times and more for each request: not so here, as on hardware of today.
TSC='tsc_mode = "native"'

# make_files NUMBER [MIB]: files in RAM, /run/bench/0 and so on, of 64 MiB if not said otherwise,
# with every page there.
make_files() {
    local number=$1 size=${2:-64} file=0
    rm -rf /run/bench
    mkdir /run/bench
    while [ $file -lt "$number" ]; do
        dd if=/dev/zero of=/run/bench/$file bs=1M count="$size" 2>/dev/null
        file=$((file + 1))
    done
    modprobe -a xen-blkback loop
}

# What a guest leaves its figures on: in RAM too, so that it is not long about it.
LEFT=/run/left

# make_left: an empty one.
make_left() {
    rm -f $LEFT
    make_disk $LEFT 32
}

# take_left DIRECTORY: what the guest left.
take_left() {
    tar -x -C "$1" -f $LEFT
}

# make_devices NUMBER: RAM disks of 64 MiB with every page there, and disks that move no data.
make_devices() {
    local device=0
    modprobe -r brd null_blk
    modprobe brd rd_nr="$1" rd_size=65536
    modprobe null_blk nr_devices=4 gb=1 memory_backed=0
    while [ $device -lt "$1" ]; do
        dd if=/dev/zero of=/dev/ram$device bs=1M count=64 oflag=direct 2>/dev/null
        device=$((device + 1))
    done
}

# own VDEV TARGET: served by xen-virtiod.
own() {
    echo "\"format=raw,vdev=$1,access=rw,backendtype=standalone,specification=virtio,grant_usage=1,target=$2\""
}

# blkback VDEV TARGET: served by Dom0's kernel, as it comes: with persistent grants, and a file by
# way of a loop device, as xl has it.
blkback() {
    chmod +x /lab/scenarios/bench-block/hotplug
    echo "\"format=raw,vdev=$1,access=rw,backendtype=phy,script=/lab/scenarios/bench-block/hotplug,target=$2\""
}

# qdisk VDEV TARGET: served by a QEMU in Dom0, by Xen's own block protocol.
qdisk() {
    echo "\"format=raw,vdev=$1,access=rw,backendtype=qdisk,target=$2\""
}

# emulated: disks that an HVM guest's QEMU emulates, as arguments for it in xl's words; with the
# cache that xl gives those of its own.
emulated() {
    echo '"-device","ich9-ahci,id=ahci",' \
        "$(drive ide 2),\"-device\",\"ide-hd,drive=ide,bus=ide.0\"," \
        "$(drive ahci 3),\"-device\",\"ide-hd,drive=ahci,bus=ahci.0\"," \
        "$(drive nvme 4),\"-device\",\"nvme,drive=nvme,serial=nvme\"," \
        "$(drive virtio 5),\"-device\",\"virtio-blk-pci,drive=virtio,serial=virtio-pci\""
}

# drive ID NUMBER: the file of that number.
drive() {
    echo "\"-drive\",\"file=/run/bench/$2,if=none,id=$1,format=raw,cache=writeback\""
}

# netback BRIDGE: a network interface served by Dom0's kernel, in xl's words.
netback() {
    echo "\"type=vif,bridge=$1,script=/lab/scenarios/bench-net/hotplug\""
}

# card MODEL NUMBER: a network card that an HVM guest's QEMU emulates, at the bridge xenbrNUMBER, as
# arguments for it in xl's words.
card() {
    echo "\"-netdev\",\"tap,id=net$2,ifname=bench$2,script=/lab/scenarios/bench-net/tap,downscript=no\","\
        "\"-device\",\"$1,netdev=net$2,mac=00:16:3e:00:00:0$2,romfile=\""
}

# make_jobs FILE GUEST DISK… [-- INTERFACE…]: an archive of the jobs for a guest of that kind; each
# DISK is one that they name and the name by which the guest finds it, each INTERFACE its name, its
# module and BRIDGE@SERVER.
make_jobs() {
    local archive=$PWD/$1 guest=$2 list=disks staging line
    shift 2
    staging=$(mktemp -d)
    cp -r "/lab/files/jobs/$guest" "$staging/jobs"
    cp /lab/scenarios/bench-block/disks.sh "$staging"
    for line; do
        case $line in
        --) list=interfaces ;;
        *) echo "$line" >>"$staging/jobs/$list" ;;
        esac
    done
    (cd "$staging" && find . | busybox cpio -o -H newc 2>/dev/null) >"$archive"
    rm -r "$staging"
}

# dom0_modules FILE NAME…: an archive of modules of Dom0's kernel, for a guest that has that kernel.
dom0_modules() {
    local archive=$PWD/$1 staging module action path file
    shift
    staging=$(mktemp -d)
    mkdir -p "$staging/lib/modules"
    for module; do
        modprobe --show-depends "$module" | while read -r action path _; do
            [ "$action" = insmod ] || continue
            file=${path##*/}
            file=${file%.xz}
            busybox unxz -c "$path" >"$staging/lib/modules/$file"
            echo "$file" >>"$staging/lib/modules/$module.order"
        done
    done
    (cd "$staging" && find . | busybox cpio -o -H newc 2>/dev/null) >"$archive"
    rm -r "$staging"
}

# start_bench NAME DISKS [SED…]: starts a guest with these disks, by the initrd made before.
start_bench() {
    local guest=$1 disks=$2
    shift 2
    start_example "blk-$GUEST" "$guest" "$PWD/initrd" "s|^memory = .*|memory = 320\n$TSC|" \
        "s|^disk = .*|disk = [$disks]|" "$@" || fail "xl could not create the guest $guest"
}

# programs [SERVER]: the disk with the programs that measure, in xl's words; of xen-virtiod's if
# nobody else is named.
programs() {
    "${1:-own}" xvdp /lab/files/programs.img | sed 's/access=rw/access=r/'
}

# mount_programs: the same for Dom0, and tool NAME ARGUMENT…, which runs one.
mount_programs() {
    mkdir programs
    mount -o loop,ro /lab/files/programs.img programs
}
tool() {
    local name=$1
    shift
    LD_LIBRARY_PATH=$PWD/programs/lib "$PWD/programs/bin/$name" "$@"
}

# tree: the archive with files to copy, unless this is a quick run, or one with the slow disks that
# QEMU emulates, which do without.
tree() {
    [ -e /lab/files/jobs/quick ] || [ "$GUEST" = hvm ] || echo /lab/guest/tree.cpio
}

# machine_facts NAME: what the guest NAME was measured on.
machine_facts() {
    {
        xl info | sed -n 's/^xen_version *: /Xen: /p'
        echo "Dom0: Linux $(uname -r), $(xl info | sed -n 's/^virt_caps *: /hypervisor offers /p')"
        echo "guest: $(guest_said "$1" kernel)"
        tr -d '\r' <"${consoles:?}/guest-$1.log" | sed -n "s/^.*lab: disk \([^ ]*\) /$GUEST disk \1: /p"
    } >>"$RESULTS/machine"
}
