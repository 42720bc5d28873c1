# Measures xen-virtiod without Dom0's page cache and with it, on equal block devices. On cold disks
# each round uses an area of its own, so that reads go to the disk with the cache too, as those of a
# guest that reads more than Dom0's memory.
# guests: pv pvh
# limit: 1800
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

measure_disks 1700
