# Measures disks on stores that take time to answer, as a real disk does: null_blk with a timer
# completes each request after 0.1, 1 or 4 ms, and serves 128 at once.
# guests: pv pvh
# limit: 1800
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

measure_disks 1700
