# Measures disks while Dom0 has two processors.
# guests: pv pvh
# limit: 1200
# machine: two-for-dom0
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

measure_disks 1100
