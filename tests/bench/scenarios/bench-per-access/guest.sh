# Does its works once, on the one disk that is measured.
. /disks.sh

load xen-blkfront
find_disks
for disk in /dev/bench/*-alone; do
    do_works "${disk##*/}" "$disk"
done
leave
