# The steps of card-intel-iommu and card-amd-iommu.
#
# An HVM guest gives a card guest-physical addresses. A card that goes past the IOMMU takes them for
# the machine's. To see whose memory it uses then, a bystander, a PV domain that never runs, is
# given what memory is left, so that it has what the machine's low addresses are; and at each of
# them stands a virtqueue that is not the guest's (see tests/programs/planted-rings).
. /lab/dom0/lib.sh
. /lab/dom0/cards.sh

# MiB of memory that an HVM guest has, at addresses from 0, and that are left to Xen beside the
# bystander.
guest_memory=256
left_to_xen=24

# What an HVM guest's kernel is told: to keep off the addresses at which, in the machine's memory,
# Dom0 has its bounce buffers, which swiotlb-xen gets from the lowest; and to end at once when it is
# asked to.
kernel_options='memmap=80M$16M sysrq_always_enabled'

# start_with_card NAME ADDRESS: starts a guest that has the card.
start_with_card() {
    start_example "blk-$GUEST" "$1" "$PWD/initrd" "s|^disk = .*|pci = [\"$2\"]|" \
        "s|^cmdline = \"|&$kernel_options |" || fail "xl could not create the guest $1"
}

# sum_of DISK SKIP: the check sum of 1 MiB of a disk, from SKIP times 64 KiB.
sum_of() {
    dd if="/dev/$1" bs=64k skip="$2" count=16 iflag=direct 2>/dev/null | sha256sum
}

# take_card SERIAL: Dom0 puts something on the disk of that card and gives the card away; $card is
# where it is, $bit is what access_platform says of it, $sum the check sum of what is on it.
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

# sum_written SERIAL NAME: the check sum of what stands on the disk where the guest wrote: as Dom0
# finds it, which gets the card back from a PV guest; after an HVM guest its interrupts do not come
# to Dom0 any more ("MSI-X release failed"), so there it is as the guest has read it again.
sum_written() {
    if [ "$GUEST" = hvm ]; then
        guest_said "$2" reread
    else
        xl pci-assignable-remove -r "$card" >&2 || fail "xl could not give the card $1 back to Dom0"
        sum_of "$(disk_of "$1")" 32
    fi
}

# card_cell OUTCOME EVIDENCE
card_cell() {
    cell 10 "$(type_of "$bit")" "a card passed through: virtio-blk-pci" "the machine, $iommu" \
        "$(echo "$GUEST" | tr a-z A-Z)" "$(words_of "$bit")" "$1" "bit 33 is $bit; $2"
}

# compare SERIAL NAME: the cell of a guest that has driven the card to its end; the file used may
# tell what the card used of the bystander's memory, and $more more of what was seen.
compare() {
    local found wrote written outcome
    end_guest "$2" 60
    written=$(sum_written "$1" "$2")
    found=$(guest_said "$2" found)
    wrote=$(guest_said "$2" wrote)
    outcome="works, data wrong"
    [ "$found" = "$sum" ] && [ "$wrote" = "$written" ] && outcome="works, data right"
    [ ! -s used ] || outcome="$outcome, another domain's memory used"
    [ "$(guest_said "$2" platform)" = "$bit" ] || fail "the guest says of bit 33: $(guest_said "$2" platform)"
    card_cell "$outcome" "1 MiB with sha256 $(echo "$sum" | cut -c-12) read as $(echo "$found" | cut -c-12), \
1 MiB with sha256 $(echo "$wrote" | cut -c-12) on the disk as $(echo "$written" | cut -c-12)$more"
}

# The memory that no domain has is the bystander's, but for a little.
make_bystander() {
    local free
    free=$(xl info free_memory)
    CREATE_FLAGS=-p start_example blk-pv bystander "$PWD/initrd" '/^disk = /d' \
        "s|^memory = .*|memory = $((free - left_to_xen))|" || fail "xl could not create the bystander"
    bystander=$domid
    planted-rings plant "$bystander" $guest_memory | tee planted
}

# ring_told: where the guest's driver told the card that its virtqueue is, which Dom0 too can read
# from the card's registers (virtio 1.2, 4.1.4.3).
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

# The card on the platform. The guest has its memory before the bystander gets the rest.
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

# The same card past the IOMMU: where the guest says that its virtqueue is, there is the
# bystander's.
take_card bypass
start_with_card hvm-bypass "$card"
wait_console hvm-bypass 200 '[vda]'
told=$(ring_told)
outcome="no request answered"
! (wait_console hvm-bypass 15 'lab: exit') 2>/dev/null || outcome="requests answered"
# The kernel has asked for the first sectors long ago, and the card has had the time to serve what
# is planted.
planted-rings look "$bystander" $guest_memory >used
xl sysrq "$domid" b # its driver waits for the card, so it cannot power off
wait_gone "$domid" 60
# Its first request has been served: its status byte, planted as 255, is the card's 0.
if grep -q "^ring at $(printf %#x "$told"): .* status 0 and " used; then
    outcome="$outcome, another domain's memory used"
fi
card_cell "$outcome" "the guest's virtqueue is at $told of its own; of domain $bystander's memory the card used: \
$(tr '\n' ' ' <used)"
xl destroy bystander
wait_gone "$bystander" 30
