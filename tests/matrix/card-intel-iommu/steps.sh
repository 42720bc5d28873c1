# The steps of card-intel-iommu and card-amd-iommu.
#
# An HVM guest gives a card guest-physical addresses. A card that bypasses the IOMMU uses them as
# machine addresses. To observe whose memory the card uses, the scenario starts a bystander, a PV
# domain that never runs. It gets all free memory, and with it the low machine addresses, and
# planted-rings writes a virtqueue to each of them (see tests/programs/planted-rings).
. /lab/dom0/lib.sh
. /lab/dom0/cards.sh

# The memory of an HVM guest, at addresses from 0, and the memory that the bystander leaves to Xen,
# in MiB.
guest_memory=256
left_to_xen=24

# Options for an HVM guest's kernel. memmap keeps it off the addresses at which Dom0 has its bounce
# buffers in the machine's memory: swiotlb-xen allocates the lowest. sysrq lets Dom0 end it at once.
kernel_options='memmap=80M$16M sysrq_always_enabled'

# start_with_card NAME ADDRESS: starts a guest with the card at this PCI address.
start_with_card() {
    start_example "blk-$GUEST" "$1" "$PWD/initrd" "s|^disk = .*|pci = [\"$2\"]|" \
        "s|^cmdline = \"|&$kernel_options |" || fail "xl could not create the guest $1"
}

# sum_of DISK SKIP: prints the checksum of 1 MiB of a disk, from SKIP times 64 KiB.
sum_of() {
    dd if="/dev/$1" bs=64k skip="$2" count=16 iflag=direct 2>/dev/null | sha256sum
}

# take_card SERIAL: writes data to the disk of that card, and makes the card assignable to a guest.
# Sets $card to its PCI address, $bit to the output of access_platform, and $sum to the checksum of
# the data.
take_card() {
    local disk
    disk=$(disk_of "$1")
    card=$(card_of "$disk")
    bit=$(access_platform "$disk")
    {
        echo "the first sector of the card $1"
        cat /dev/urandom
    } | dd of="/dev/$disk" bs=64k count=16 iflag=fullblock oflag=direct 2>/dev/null
    sum=$(sum_of "$disk" 0)
    xl pci-assignable-add "$card" || fail "xl could not take the card $1 from Dom0"
}

# sum_written SERIAL NAME: prints the checksum of the disk's data where the guest wrote. Dom0 reads
# the data, after it has taken the card back from a PV guest. After an HVM guest the card's
# interrupts do not reach Dom0 any more ("MSI-X release failed"), so the function prints the
# checksum that the guest read back.
sum_written() {
    if [ "$GUEST" = hvm ]; then
        guest_said "$2" reread
    else
        xl pci-assignable-remove -r "$card" >&2 || fail "xl could not return the card $1 to Dom0"
        sum_of "$(disk_of "$1")" 32
    fi
}

# card_cell OUTCOME EVIDENCE: writes a result about the card.
card_cell() {
    result 10 "$(type_of "$bit")" "a card passed through: virtio-blk-pci" "the machine, $iommu" \
        "$(echo "$GUEST" | tr a-z A-Z)" "$(words_of "$bit")" "$1" "bit 33 is $bit; $2"
}

# compare SERIAL NAME: waits for the guest's end and writes the result. The file used lists the
# bystander's memory that the card used, if any; $more is further evidence.
compare() {
    local found wrote written outcome
    end_guest "$2" 60
    written=$(sum_written "$1" "$2")
    found=$(guest_said "$2" found)
    wrote=$(guest_said "$2" wrote)
    outcome="works, data wrong"
    [ "$found" = "$sum" ] && [ "$wrote" = "$written" ] && outcome="works, data right"
    [ ! -s used ] || outcome="$outcome, another domain's memory used"
    [ "$(guest_said "$2" platform)" = "$bit" ] ||
        fail "bit 33 is $bit in Dom0 and $(guest_said "$2" platform) in the guest"
    card_cell "$outcome" "1 MiB with sha256 $(echo "$sum" | cut -c-12) read as $(echo "$found" | cut -c-12), \
1 MiB with sha256 $(echo "$wrote" | cut -c-12) on the disk as $(echo "$written" | cut -c-12)$more"
}

# make_bystander: starts the bystander with all free memory except $left_to_xen, and plants
# virtqueues.
make_bystander() {
    local free
    free=$(xl info free_memory)
    CREATE_FLAGS=-p start_example blk-pv bystander "$PWD/initrd" '/^disk = /d' \
        "s|^memory = .*|memory = $((free - left_to_xen))|" ||
            fail "xl could not create the bystander"
    bystander=$domid
    planted-rings plant "$bystander" $guest_memory | tee planted
}

# ring_told: prints the address of the virtqueue that the guest's driver wrote to the card's
# registers, which Dom0 can read too (virtio 1.2, 4.1.4.3).
ring_told() {
    local registers
    registers=$(sed -n '5s/ .*//p' "/sys/bus/pci/devices/$card/resource")
    busybox devmem $((registers + 0x20)) 32
}

modprobe xen-pciback
iommu=$(iommu_xen_drives) more=
make_initrd initrd /lab/scenarios/card-intel-iommu/guest.sh

if [ "$GUEST" = pv ]; then
    check_own_disk 10
    for serial in platform bypass; do
        take_card $serial
        start_with_card "$GUEST-$serial" "$card"
        compare $serial "$GUEST-$serial"
    done
    exit
fi

# The card with VIRTIO_F_ACCESS_PLATFORM. The guest allocates its memory before the bystander gets
# the rest.
take_card platform
CREATE_FLAGS=-p start_with_card hvm-platform "$card"
guest=$domid
make_bystander
domid=$guest
xl unpause hvm-platform
wait_console hvm-platform 200 'lab: exit'
more="; its virtqueue is at $(ring_told), and of domain $bystander's memory there it used: \
$(planted-rings look "$bystander" $guest_memory | tee used | grep . || echo nothing)"
compare platform hvm-platform

# The card that bypasses the IOMMU. At the guest's address of the virtqueue, the machine has one of
# the bystander's.
take_card bypass
start_with_card hvm-bypass "$card"
wait_console hvm-bypass 200 '[vda]'
told=$(ring_told)
outcome="no request answered"
! (wait_console hvm-bypass 15 'lab: exit') 2>/dev/null || outcome="requests answered"
# The kernel requested the first sectors long before, so the card has had time to process the
# planted virtqueues.
planted-rings look "$bystander" $guest_memory >used
xl sysrq "$domid" b # the guest's driver waits for the card, so the guest cannot power off
wait_gone "$domid" 60
# The card has served the first request of the ring: its status byte was planted as 255 and is now
# 0.
if grep -q "^ring at $(printf %#x "$told"): .* status 0 and " used; then
    outcome="$outcome, another domain's memory used"
fi
card_cell "$outcome" "the guest's virtqueue is at $told of its own; of domain $bystander's memory the card used: \
$(tr '\n' ' ' <used)"
xl destroy bystander
wait_gone "$bystander" 30
