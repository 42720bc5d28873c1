# On Arm, xl puts a node for each virtio disk into the guest's device tree, whose registers nobody
# emulates: the driver virtio_mmio would fault. The module removes the node, when virtio_mmio comes
# later, and when it came first and waits for the node's IOMMU.
# guests:
# on-arm: test
# limit: 120
. /lab/dom0/lib.sh

make_disk disk.img 8
head -c 1M /dev/urandom | dd of=disk.img conv=notrunc 2>/dev/null
make_initrd initrd /lab/scenarios/stray-node/guest.sh

# boots NAME GRANT_USAGE FIRST: starts a guest that loads the module FIRST before all others.
boots() {
    start_example "blk-$GUEST" "$1" "$PWD/initrd" \
        "s|^disk = .*|disk = [$(disk_lines "$PWD/disk.img" | sed "s|grant_usage=1|grant_usage=$2|")]|" \
        "s|^extra = \"|&lab.first=$3 |" || fail "xl could not create the guest $1"
    wait_console "$1" 60 'lab: sum '
    [ "$(guest_said "$1" sum)" = "$(head -c 1M disk.img | sha256sum)" ] || fail "the guest $1 read other data"
    tell_guest "$domid" "the sum is right"
    end_guest "$1" 30
}

boots later-with-iommu 1 ''
boots later-without-iommu 0 ''
boots first-with-iommu 1 virtio_mmio
