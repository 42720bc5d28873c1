# Measures disks whose images are files on ext4, on a RAM disk and on a disk that takes time, with
# and without Dom0's page cache.
# guests: pv pvh
# limit: 1800
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

measure_disks 1700
