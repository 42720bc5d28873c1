# Measures disks of one guest, each with another server, alternately: on equal files in RAM, one for
# each server, and for PV and PVH guests also on RAM disks and on null_blk, which moves no data.
# xen-virtiod and xen-blkback serve every guest, QEMU's qdisk PV and PVH guests, and QEMU's emulated
# disks HVM guests.
# guests: pv pvh hvm
# limit: 1800
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

measure_disks 1700
