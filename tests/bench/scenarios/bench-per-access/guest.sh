# Does the few works once, on the measured disk.
. /disks.sh

load xen-blkfront
find_disks
for disk in /dev/bench/*-alone; do
    do_works "${disk##*/}" "$disk"
done
leave
