# The default x86 QEMU, without an IOMMU: Dom0's own disk, with Xen between it and its processor.
# guests: pv
# limit: 60
. /lab/dom0/lib.sh
. /lab/dom0/cards.sh

check_own_disk 9
