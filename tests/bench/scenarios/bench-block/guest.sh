# Finds each disk by the name that Dom0 gave it, runs fio's rounds, and writes fio's output to the
# disk for results.
. /disks.sh

if [ -e /jobs/blkfront ]; then
    # shellcheck disable=SC2046 # parameters are words
    insmod /lib/modules/xen-blkfront.ko $(cat /jobs/blkfront)
else
    load xen-blkfront
fi
if [ "$(cat /sys/hypervisor/guest_type)" = HVM ] && [ -d /sys/bus/pci/devices/0000:00:01.1 ]; then
    # This order makes the names predictable: AHCI's disk is sda.
    load sd_mod
    load ahci
    wait_for "the AHCI disk" 30 test -b /dev/sda
    load ata_piix
fi
find_disks
for disk in /dev/bench/*; do
    queue=/sys/block/$(basename "$(readlink "$disk")")/queue
    echo "lab: disk ${disk##*/} $(readlink "$disk") scheduler $(cat "$queue/scheduler")" \
        "requests $(cat "$queue/nr_requests") largest $(cat "$queue/max_sectors_kb") cache $(cat "$queue/write_cache")"
done

# shell_work DISK: makes a file system and uses it with shell commands; prints the rate per second.
shell_work() {
    start=$(cut -d ' ' -f 1 /proc/uptime)
    # Without discard: fio must find the disk's storage allocated in the next round.
    /usr/sbin/mke2fs -q -E nodiscard -t ext4 "$1"
    mount -t ext4 "$1" /data
    tar -x -C /data -f /tmp/tree.tar
    sync
    find /data -type f -exec cat {} + >/dev/null
    dd if=/dev/zero of=/data/zeros bs=64k count=160 conv=fsync 2>/dev/null
    umount /data
    mount -t ext4 "$1" /data
    find /data -type f -exec cat {} + >/dev/null
    rm -r /data/*
    umount /data
    awk -v start="$start" '{ printf "%.4f\n", 1 / ($1 - start) }' /proc/uptime
}

# disks_of TARGET: prints the disks on that store, in the order of the pass.
disks_of() {
    if [ "$pass" = backward ]; then
        ls -r -d /dev/bench/*-"$1"
    else
        ls -d /dev/bench/*-"$1"
    fi
}

# do_pass JOBS SHELL: does fio's jobs and the shell's work. SHELL says whether to do the latter.
do_pass() {
    echo "lab: round $round $pass"
    # Where a job on a cold disk begins: rounds have areas of 512 MiB.
    export AREA=$((round * 512))m
    ! grep -q filename= "$1" ||
        tool fio --eta=never --output-format=json --output="/tmp/results/rounds/$round.json" "$1"
    if [ -e /tree ] && [ "$2" = yes ] && [ "$pass" != warm-up ]; then
        for disk in $(disks_of file); do
            shell_work "$disk" >"/tmp/results/figures/$round-shell@${disk##*/}.rate"
        done
    fi
}

mkdir /data
[ ! -e /tree ] || tar -c -f /tmp/tree.tar /tree 2>/dev/null
while read -r round pass; do
    do_pass "/jobs/$pass.fio" yes
done </jobs/passes
[ ! -s /jobs/more ] || find_close
while read -r round pass; do
    [ -s /tmp/close ] || break
    awk -f /jobs/select.awk /tmp/close RS= "/jobs/$pass.fio" >/tmp/selected.fio
    do_pass /tmp/selected.fio "$(grep -q shell@ /tmp/close && echo yes || echo no)"
done </jobs/more
leave
