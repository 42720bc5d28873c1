# Functions for the compared disks and their backing stores. Functions for disks print an element of
# xl's list `disk`.

# Xen emulates reads of the time stamp counter, ten and more for each request, if it does not know
# that the counter is invariant, as on QEMU's processor. This option makes guests read the counter
# directly, as on current hardware.
TSC='tsc_mode = "native"'

# make_files NUMBER [MIB]: makes files in RAM, /run/bench/0 and so on, of 64 MiB by default, with
# all pages allocated.
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

# The image of the disk to which a guest writes its results. It is in RAM, to save time.
LEFT=/run/left

# make_left: makes an empty image for results.
make_left() {
    rm -f $LEFT
    make_disk $LEFT 32
}

# take_left DIRECTORY: unpacks the guest's results to the directory.
take_left() {
    tar -x -C "$1" -f $LEFT
}

# make_devices NUMBER: makes RAM disks of 64 MiB with all pages allocated, and null_blk disks, which
# move no data.
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

# own VDEV TARGET: prints a disk that xen-virtiod serves.
own() {
    echo "\"format=raw,vdev=$1,access=rw,backendtype=standalone,specification=virtio,grant_usage=1,target=$2\""
}

# blkback VDEV TARGET: prints a disk that Dom0's kernel serves with its defaults: with persistent
# grants, and for a file through a loop device, as xl does.
blkback() {
    chmod +x /lab/scenarios/bench-block/hotplug
    echo "\"format=raw,vdev=$1,access=rw,backendtype=phy,script=/lab/scenarios/bench-block/hotplug,target=$2\""
}

# qdisk VDEV TARGET: prints a disk that a QEMU in Dom0 serves, with Xen's block protocol.
qdisk() {
    echo "\"format=raw,vdev=$1,access=rw,backendtype=qdisk,target=$2\""
}

# emulated: prints QEMU's arguments for the disks that an HVM guest's QEMU emulates, as elements of
# device_model_args_hvm, with the cache mode that xl uses for emulated disks.
emulated() {
    echo '"-device","ich9-ahci,id=ahci",' \
        "$(drive ide 2),\"-device\",\"ide-hd,drive=ide,bus=ide.0\"," \
        "$(drive ahci 3),\"-device\",\"ide-hd,drive=ahci,bus=ahci.0\"," \
        "$(drive nvme 4),\"-device\",\"nvme,drive=nvme,serial=nvme\"," \
        "$(drive virtio 5),\"-device\",\"virtio-blk-pci,drive=virtio,serial=virtio-pci\""
}

# drive ID NUMBER: prints QEMU's arguments for the file of that number.
drive() {
    echo "\"-drive\",\"file=/run/bench/$2,if=none,id=$1,format=raw,cache=writeback\""
}

# netback BRIDGE: prints an element of xl's list `vif`: an interface that Dom0's kernel serves.
netback() {
    echo "\"type=vif,bridge=$1,script=/lab/scenarios/bench-net/hotplug\""
}

# card MODEL NUMBER: prints QEMU's arguments for an emulated network card at the bridge xenbrNUMBER,
# as elements of device_model_args_hvm.
card() {
    echo "\"-netdev\",\"tap,id=net$2,ifname=bench$2,script=/lab/scenarios/bench-net/tap,downscript=no\","\
        "\"-device\",\"$1,netdev=net$2,mac=00:16:3e:00:00:0$2,romfile=\""
}

# make_jobs FILE GUEST DISK… [-- INTERFACE…]: makes an archive of the jobs for a guest of that kind.
# Each DISK is SERVER-TARGET, as the jobs name it, and the name by which the guest finds it. Each
# INTERFACE is its name, its module and BRIDGE@SERVER.
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

# dom0_modules FILE NAME…: makes an archive of modules of Dom0's kernel, for a guest with that
# kernel.
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

# start_bench NAME DISKS [SED…]: starts a guest with these disks and the file initrd.
start_bench() {
    local guest=$1 disks=$2
    shift 2
    start_example "blk-$GUEST" "$guest" "$PWD/initrd" "s|^memory = .*|memory = 320\n$TSC|" \
        "s|^disk = .*|disk = [$disks]|" "$@" || fail "xl could not create the guest $guest"
}

# programs [SERVER]: prints the disk with the measuring programs. SERVER is the function of its
# server, by default own.
programs() {
    "${1:-own}" xvdp /lab/files/programs.img | sed 's/access=rw/access=r/'
}

# mount_programs: mounts the measuring programs in Dom0. tool NAME ARGUMENT…: runs one of them.
mount_programs() {
    mkdir programs
    mount -o loop,ro /lab/files/programs.img programs
}
tool() {
    local name=$1
    shift
    LD_LIBRARY_PATH=$PWD/programs/lib "$PWD/programs/bin/$name" "$@"
}

# tree: prints the archive with files to copy. Quick runs and HVM guests, whose emulated disks are
# slow, do without.
tree() {
    [ -e /lab/files/jobs/quick ] || [ "$GUEST" = hvm ] || echo /lab/guest/tree.cpio
}

# machine_facts NAME: records facts about the machine and the guest NAME.
machine_facts() {
    {
        xl info | sed -n 's/^xen_version *: /Xen: /p'
        echo "Dom0: Linux $(uname -r), $(xl info | sed -n 's/^virt_caps *: /hypervisor offers /p')"
        echo "guest: $(guest_said "$1" kernel)"
        tr -d '\r' <"${consoles:?}/guest-$1.log" | sed -n "s/^.*lab: disk \([^ ]*\) /$GUEST disk \1: /p"
    } >>"$RESULTS/machine"
}
