# The experiment of own-disk, with iommu_platform=on for QEMU's disks.
# machine: disk-platform
# guests: pv
# limit: 60
. /lab/dom0/lib.sh
. /lab/dom0/cards.sh

check_own_disk 9
