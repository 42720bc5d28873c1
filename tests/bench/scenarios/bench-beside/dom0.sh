# Measures a disk while a TCP stream leaves the same guest: both by xen-virtiod, and by xen-blkback
# and xen-netback.
# guests: pv pvh
# limit: 900
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh
. /lab/scenarios/bench-net/bridges.sh

name=$GUEST-bench-beside
start_beside "$name" bench-beside
end_guest "$name" 800
take_left "$RESULTS"
machine_facts "$name"
