# As own-disk, where QEMU was told that its disks are on the platform: iommu_platform=on.
# machine: disk-platform
# guests: pv
# limit: 60
. /lab/dom0/lib.sh
. /lab/dom0/cards.sh

check_own_disk 9
