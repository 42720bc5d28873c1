# Measures packets between two guests, which have an interface by xen-virtiod each at one bridge in
# Dom0, and one by xen-netback each at another.
# guests: pv pvh
# limit: 1400
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh
. /lab/scenarios/bench-net/bridges.sh
. /lab/scenarios/bench-guests/pair.sh

link_bridges 2
measure_pair "$GUEST-bench-guests" guest "$(network "")"
