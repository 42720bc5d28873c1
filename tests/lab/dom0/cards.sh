# Functions for scenarios about disks and cards of the machine itself, which stand below Xen:
#     . /lab/dom0/cards.sh

# disk_of SERIAL: the name of the disk with that serial number, such as vda.
disk_of() {
    grep -lx "$1" /sys/block/vd*/serial | cut -d/ -f4 | grep . || fail "there is no disk $1"
}

# access_platform DISK: 1 if VIRTIO_F_ACCESS_PLATFORM, bit 33, is negotiated with the disk, else 0.
access_platform() {
    cut -c34 "/sys/block/$1/device/features"
}

# card_of DISK: the address of the card that it is a disk of.
card_of() {
    basename "$(readlink -f "/sys/block/$1/device/..")"
}

# type_of BIT, words_of BIT: what access_platform says, for a cell: the type of host, and the words.
type_of() {
    [ "$1" = 1 ] && echo b || echo a
}
words_of() {
    [ "$1" = 1 ] && echo "ACCESS_PLATFORM" || echo "no ACCESS_PLATFORM"
}

# iommu_xen_drives: which one that is, by what Xen says now and said when it started.
iommu_xen_drives() {
    if ! xl info | grep -q '^virt_caps.* hvm_directio pv_directio'; then
        echo "no IOMMU"
    elif xl dmesg | grep -q '^(XEN) Intel VT-d Queued Invalidation enabled'; then
        echo "Intel IOMMU"
    elif xl dmesg | grep -q '^(XEN) AMD-Vi: IOMMU 0 Enabled'; then
        echo "AMD IOMMU"
    else
        echo "an IOMMU"
    fi
}

# check_own_disk ROW: a cell about the disk that Dom0's root file system is on. Data that was made
# elsewhere is read: Debian's modules, which have check sums in them; and data is written and read
# back.
check_own_disk() {
    local disk bit modules sum again outcome
    disk=$(disk_of root)
    bit=$(access_platform "$disk")
    dd if=/dev/urandom of=written bs=64k count=64 conv=fsync 2>/dev/null
    sum=$(sha256sum <written)
    echo 3 >/proc/sys/vm/drop_caches
    again=$(sha256sum <written)
    find /usr/lib/modules -name '*.ko.xz' | sort | head -n 200 >modules
    modules=$(wc -l <modules)
    [ "$modules" = 200 ] || fail "Dom0's disk has $modules modules only"
    outcome="works, data wrong"
    if xargs busybox unxz -c <modules >/dev/null && [ "$again" = "$sum" ]; then
        outcome="works, data right"
    fi
    cell "$1" "$(type_of "$bit")" "QEMU virtio-blk-pci" "the machine, $(iommu_xen_drives)" Dom0 \
        "$(words_of "$bit")" "$outcome" "bit 33 is $bit; $modules modules of Debian's hold their own check sums; \
4 MiB written with sha256 $(echo "$sum" | cut -c-12), read as $(echo "$again" | cut -c-12); \
Xen $(xl info xen_version), $(xl info | grep '^virt_caps')"
}
