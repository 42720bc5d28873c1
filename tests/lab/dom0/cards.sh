# Functions for scenarios about the machine's own disks and cards, which QEMU emulates below Xen:
#     . /lab/dom0/cards.sh

# disk_of SERIAL: prints the name of the disk with that serial number, such as vda.
disk_of() {
    grep -lx "$1" /sys/block/vd*/serial | cut -d/ -f4 | grep . || fail "there is no disk $1"
}

# access_platform DISK: prints 1 if the disk negotiated VIRTIO_F_ACCESS_PLATFORM, bit 33, else 0.
access_platform() {
    cut -c34 "/sys/block/$1/device/features"
}

# card_of DISK: prints the PCI address of the disk's card.
card_of() {
    basename "$(readlink -f "/sys/block/$1/device/..")"
}

# type_of BIT, words_of BIT: print the host type and the words for the output of access_platform, as
# a row of the matrix has them.
type_of() {
    [ "$1" = 1 ] && echo b || echo a
}
words_of() {
    [ "$1" = 1 ] && echo "ACCESS_PLATFORM" || echo "no ACCESS_PLATFORM"
}

# iommu_xen_drives: prints which IOMMU Xen drives, according to `xl info` and Xen's boot messages.
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

# check_own_disk ROW: writes a result about the disk with Dom0's root file system. The function
# reads data that was made elsewhere, Debian's modules, which contain checksums; and it writes data
# and reads it back.
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
    [ "$modules" = 200 ] || fail "Dom0's disk has only $modules modules"
    outcome="works, data wrong"
    if xargs busybox unxz -c <modules >/dev/null && [ "$again" = "$sum" ]; then
        outcome="works, data right"
    fi
    result "$1" "$(type_of "$bit")" "QEMU virtio-blk-pci" "the machine, $(iommu_xen_drives)" Dom0 \
        "$(words_of "$bit")" "$outcome" "bit 33 is $bit; $modules modules of Debian match their checksums; \
4 MiB written with sha256 $(echo "$sum" | cut -c-12), read as $(echo "$again" | cut -c-12); \
Xen $(xl info xen_version), $(xl info | grep '^virt_caps')"
}
