# QEMU's default x86 machine, without an IOMMU: Dom0's own disk, which Dom0 drives under Xen.
# guests: pv
# limit: 60
. /lab/dom0/lib.sh
. /lab/dom0/cards.sh

check_own_disk 9
