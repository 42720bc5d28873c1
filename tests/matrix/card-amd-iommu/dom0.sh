# As card-intel-iommu, behind an IOMMU of AMD's.
# machine: amd-iommu
# guests: pv hvm
# limit: 560
. /lab/scenarios/card-intel-iommu/steps.sh
