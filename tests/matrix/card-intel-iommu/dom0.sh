# Cards behind an Intel IOMMU that Xen drives: Dom0's own disk, and two cards that differ only in
# VIRTIO_F_ACCESS_PLATFORM, each passed through to a guest. See steps.sh.
# machine: intel-iommu
# guests: pv hvm
# limit: 560
. /lab/scenarios/card-intel-iommu/steps.sh
