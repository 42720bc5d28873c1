# Measures disks of a PV guest that shares its only processor with Dom0.
# guests: pv
# limit: 600
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

# The lab's xl.conf keeps guests off Dom0's processor.
CREATE_FLAGS=--ignore-global-affinity-masks
measure_disks 500 's|^vcpus = .*|&\ncpus = "0"|'
