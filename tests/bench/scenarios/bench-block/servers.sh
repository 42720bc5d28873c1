# Functions for the compared disks and their backing stores. Functions for disks print an element of
# xl's list `disk`.

# Xen emulates reads of the time stamp counter, ten and more for each request, if it does not know
# that the counter is invariant, as on QEMU's processor. This option makes guests read the counter
# directly, as on current hardware.
TSC='tsc_mode = "native"'

# The jobs of the guest's kind in this scenario. The directory above has those of all scenarios.
jobs=/lab/files/jobs/$GUEST/${RESULTS##*/}

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

# clear_stores: removes the stores of earlier scenarios.
clear_stores() {
    local device
    for device in /run/bench/*.ext4; do
        [ ! -d "$device" ] || umount "$device"
    done
    rm -rf /run/bench
    mkdir /run/bench
    modprobe -a xen-blkback loop null_blk dm-delay
    mount_programs
    tool dmsetup remove_all
    modprobe -r brd
    mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
    for device in /sys/kernel/config/nullb/*/; do
        [ ! -d "$device" ] || rmdir "$device"
    done
    stores=0
}

# make_store KIND[_SETTING]: makes a backing store of that kind, and sets $store to its path. The
# scenario arranges the SETTING. The number of stores, $stores, makes names unique.
make_store() {
    case ${1%%_*} in
    file)
        store=/run/bench/$stores
        fill $store
        ;;
    ram)
        ram_disk
        fill $store oflag=direct
        ;;
    null) null_disk bench$stores irqmode=1 completion_nsec=0 hw_queue_depth=64 ;;
    null100us) slow_disk 100000 ;;
    null1ms) slow_disk 1000000 ;;
    null4ms) slow_disk 4000000 ;;
    flush10ms) slow_flush memory_backed=0 ;;
    ext4ram)
        ram_disk
        file_system
        ;;
    ext4slow | ext4direct)
        slow_flush memory_backed=1
        file_system
        ;;
    *) fail "unknown store $1" ;;
    esac
    stores=$((stores + 1))
}

# fill FILE [OPTION]: writes 64 MiB of zeros, so that the storage is allocated.
fill() {
    dd if=/dev/zero of="$1" bs=1M count=64 ${2:+"$2"} 2>/dev/null
}

# null_disk NAME ATTRIBUTE=VALUE…: makes a disk of 10 GiB that moves no data, and sets $store.
null_disk() {
    local device=/sys/kernel/config/nullb/$1 attribute
    store=/dev/$1
    mkdir "$device"
    shift
    for attribute in size=10240 memory_backed=0 submit_queues=1 "$@" power=1; do
        echo "${attribute#*=}" >"$device/${attribute%%=*}"
    done
}

# slow_disk NANOSECONDS: makes a disk that moves no data and completes each request after that time.
# It serves 128 requests at once.
slow_disk() {
    null_disk bench$stores irqmode=2 "completion_nsec=$1" hw_queue_depth=128
}

# ram_disk: sets $store to a RAM disk of 128 MiB. Modprobe makes all of them, but empty ones take no
# memory.
ram_disk() {
    modprobe brd rd_nr=16 rd_size=131072
    store=/dev/ram$stores
}

# slow_flush ATTRIBUTE: makes a disk that takes 1 ms for a read or write and 10 ms for a flush.
# ATTRIBUTE is null_blk's. dm-delay sends flushes to a disk of their own. Its own delays are 0: for
# short ones it uses a thread that polls, which would take Dom0's processor.
slow_flush() {
    local data flush
    null_disk flush$stores irqmode=2 completion_nsec=10000000 memory_backed=1 cache_size=1
    flush=$store
    null_disk data$stores irqmode=2 completion_nsec=1000000 hw_queue_depth=128 "$1"
    data=$store
    tool dmsetup create --noudevsync --noudevrules bench$stores \
        --table "0 2097152 delay $data 0 0 $data 0 0 $flush 0 0"
    store=/dev/$(tool dmsetup info -c --noheadings -o blkdevname bench$stores)
}

# file_system: makes ext4 on $store, with a file of 64 MiB, and sets $store to the file.
file_system() {
    local mounted=/run/bench/$stores.ext4
    mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 $store 120M
    mkdir $mounted
    mount -t ext4 $store $mounted
    store=$mounted/image
    fill $store conv=fsync
}

# add_disks: makes a store for each line SERVER KEY of the file disks in the scenario's directory of
# jobs. Sets $disks to elements of xl's list disk, $emulated to QEMU's arguments for those that QEMU
# emulates, and $found to lines SERVER-KEY NAME for make_jobs.
add_disks() {
    local letters=efghijklmnqrstuvwxyz server key vdev
    disks='' emulated='' found=''
    while read -r server key; do
        make_store "$key"
        vdev=xvd${letters%"${letters#?}"}
        case $server in
        ours) add_disk "$(own $vdev $store "$(options "$key")")" ;;
        cached) add_disk "$(own $vdev $store)" ;;
        blkback | blkback-tuned) add_disk "$(blkback $vdev $store "$(options "$key")")" ;;
        qdisk) add_disk "$(qdisk $vdev $store)" ;;
        *)
            vdev=$(emulated_name "$server")
            emulated="$emulated${emulated:+, }$(emulated "$server" $store)"
            ;;
        esac
        letters=${letters#?}
        found="$found${found:+
}$server-$key $vdev"
    done <"$jobs/disks"
}

add_disk() {
    disks="$disks${disks:+, }$1"
}

# options KEY: prints the options of disks on that store, each with a comma. On a slow store the
# page cache would answer instead of the store. blkback uses it only for files.
options() {
    case $1 in
    null?* | flush* | ext4direct | *_direct) echo direct-io-safe, ;;
    esac
}

# own VDEV TARGET [OPTION,…]: prints a disk that xen-virtiod serves.
own() {
    echo "\"format=raw,vdev=$1,access=rw,${3:-}backendtype=standalone,specification=virtio,grant_usage=1,target=$2\""
}

# blkback VDEV TARGET [OPTION,…]: prints a disk that Dom0's kernel serves with its defaults: with
# persistent grants, and for a file through a loop device, as xl does.
blkback() {
    chmod +x /lab/scenarios/bench-block/hotplug
    echo "\"format=raw,vdev=$1,access=rw,${3:-}backendtype=phy,script=/lab/scenarios/bench-block/hotplug,target=$2\""
}

# qdisk VDEV TARGET: prints a disk that a QEMU in Dom0 serves, with Xen's block protocol.
qdisk() {
    echo "\"format=raw,vdev=$1,access=rw,backendtype=qdisk,target=$2\""
}

# emulated SERVER FILE: prints QEMU's arguments for a disk that an HVM guest's QEMU emulates, as
# elements of device_model_args_hvm, with the cache mode that xl uses for emulated disks.
emulated() {
    local drive="\"-drive\",\"file=$2,if=none,id=$1,format=raw,cache=writeback\""
    case $1 in
    ahci) echo "\"-device\",\"ich9-ahci,id=sata\",$drive,\"-device\",\"ide-hd,drive=ahci,bus=sata.0\"" ;;
    ide) echo "$drive,\"-device\",\"ide-hd,drive=ide,bus=ide.0\"" ;;
    nvme | virtio-blk-pci) echo "$drive,\"-device\",\"$1,drive=$1,serial=$1\"" ;;
    virtio-pci) emulated virtio-blk-pci "$2" ;;
    esac
}

# emulated_name SERVER: prints the name by which the guest finds that disk.
emulated_name() {
    case $1 in
    ahci) echo sda ;;
    ide) echo sdb ;;
    nvme) echo nvme0n1 ;;
    virtio-pci) echo virtio-blk-pci ;;
    esac
}

# netback BRIDGE [DOMAIN]: prints an element of xl's list `vif`: an interface that the kernel of
# Dom0 or DOMAIN serves.
netback() {
    echo "\"type=vif,bridge=$1,script=/lab/scenarios/bench-net/hotplug${2:+,backend=$2}\""
}

# card MODEL NUMBER: prints QEMU's arguments for an emulated network card at the bridge xenbrNUMBER,
# as elements of device_model_args_hvm.
card() {
    echo "\"-netdev\",\"tap,id=net$2,ifname=bench$2,script=/lab/scenarios/bench-net/tap,downscript=no\","\
        "\"-device\",\"$1,netdev=net$2,mac=00:16:3e:00:00:0$2,romfile=\""
}

# make_jobs FILE DISK… [-- INTERFACE…]: makes an archive of the jobs for a guest. Each DISK is
# SERVER-TARGET, as the jobs name it, and the name by which the guest finds it. Each INTERFACE is
# its name, its module and BRIDGE@SERVER.
make_jobs() {
    local archive=$PWD/$1 list=disks staging line
    shift
    staging=$(mktemp -d)
    mkdir "$staging/jobs"
    find "${jobs%/*}" "$jobs" -maxdepth 1 -type f -exec cp -t "$staging/jobs" {} +
    rm -f "$staging/jobs/disks"
    [ -z "${BLKFRONT:-}" ] || echo "$BLKFRONT" >"$staging/jobs/blkfront"
    cp /lab/scenarios/bench-block/*.awk "$staging/jobs/"
    cp /lab/scenarios/bench-block/disks.sh /lab/scenarios/bench-net/net.sh "$staging"
    for line; do
        case $line in
        --) list=interfaces ;;
        *) echo "$line" >>"$staging/jobs/$list" ;;
        esac
    done
    (cd "$staging" && find . | busybox cpio -o -H newc 2>/dev/null) >"$archive"
    rm -r "$staging"
}

# measure_disks LIMIT [SED…]: starts a guest with the disks of add_disks, which does the scenario's
# passes, and collects its results. Each SED changes the guest's configuration. BLKFRONT, if set, is
# the parameters of xen-blkfront.
measure_disks() {
    local name=$GUEST-${RESULTS##*/} limit=$1 tree
    shift
    make_left
    clear_stores
    add_disks
    add_disk "$(own xvdo $LEFT)"
    add_disk "$(programs own)"
    make_jobs jobs.cpio "$found" 'results xvdo' 'programs xvdp'
    tree=$(tree)
    make_initrd initrd /lab/scenarios/bench-block/guest.sh /lab/files/modules.cpio jobs.cpio \
        ${tree:+"$tree"}
    # The option keeps an HVM guest's kernel from unplugging emulated disks.
    [ -z "$emulated" ] || set -- "s|panic=-1|& xen_emul_unplug=unnecessary|" \
        "s|^disk = .*|&\ndevice_model_args_hvm = [$emulated]|" "$@"
    start_bench "$name" "$disks" "s|^memory = .*|memory = 512|" "$@"
    end_guest "$name" "$limit"
    xen-virtiod stat --json >"$RESULTS/counters"
    take_left "$RESULTS"
    machine_facts "$name"
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

# tree: prints the archive with files to copy for the shell's work, if the run includes that. HVM
# guests, whose emulated disks are slow, do without.
tree() {
    [ ! -e /lab/files/jobs/shell ] || [ "$GUEST" = hvm ] || echo /lab/guest/tree.cpio
}

# machine_facts NAME: records facts about the machine and the guest NAME.
machine_facts() {
    {
        xl info | sed -n 's/^xen_version *: /Xen: /p'
        echo "Dom0: $(cat /sys/hypervisor/guest_type), Linux $(uname -r), $(xl info | sed -n 's/^virt_caps *: /hypervisor offers /p')"
        echo "guest: $(guest_said "$1" kernel)"
        tr -d '\r' <"${consoles:?}/guest-$1.log" | sed -n "s/^.*lab: disk \([^ ]*\) /$GUEST disk \1: /p"
    } >>"$RESULTS/machine"
}
