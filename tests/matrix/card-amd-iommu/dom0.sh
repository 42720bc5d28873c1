# The experiments of card-intel-iommu, behind an AMD IOMMU.
# machine: amd-iommu
# guests: pv hvm
# limit: 560
. /lab/scenarios/card-intel-iommu/steps.sh
