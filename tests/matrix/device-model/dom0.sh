# Row 6: the most common host of type (a): QEMU, the device model of an HVM guest, emulates
# virtio-blk-pci in Dom0, and the guest's stock drivers drive it. It works, with iommu_platform=on
# too, and the guest grants no page for it: the device model, a process of root, maps any page. To
# prove that, the device model reads all of the guest's memory, with a secret in it that the guest
# gave to no device.
# guests: hvm
# limit: 360
. /lab/dom0/lib.sh

name=device-model
memory=256

# disk BIT: prints the arguments for a disk with iommu_platform=BIT.
disk() {
    echo "\"-drive\", \"file=$PWD/$1.img,if=none,id=$1,format=raw\", \"-device\", \"virtio-blk-pci,drive=$1,\
serial=$1,iommu_platform=$1,disable-legacy=on\""
}

# maps WORDS: prints the number of pages that the device model has mapped from files with WORDS in
# their name.
maps() {
    local from to pages=0
    while read -r from to; do
        pages=$((pages + (0x$to - 0x$from) / 4096))
    done <<END
$(sed -n "s/^\([0-9a-f]*\)-\([0-9a-f]*\) .*$1.*/\1 \2/p" "/proc/$model/maps")
END
    echo $pages
}

# data BIT: writes the result of a disk.
data() {
    local outcome='works, data right'
    guest_said "$name" "found-$1" >found
    guest_said "$name" "written-$1" >written
    guest_said "$name" "read-$1" >./read
    sha256sum <"$1.img" >after
    busybox cmp -s found "$1-before" || outcome='works, data read is wrong'
    busybox cmp -s read written || outcome='works, data read back is wrong'
    busybox cmp -s written after || outcome='works, data written is wrong'
    [ "$granted" = 0 ] || outcome="$outcome, by grants"
    result 6 a "QEMU virtio-blk-pci, iommu_platform=$1" 'device model in Dom0' HVM 'guest addresses' "$outcome" \
        "guest: driver $(guest_said "$name" "driver-$1"), feature bit 33 is $(guest_said "$name" "bit-$1"); 1 MiB read: \
sha256 $(head -c 8 found) there, $(head -c 8 "$1-before") in the image; 1 MiB written: $(head -c 8 written) there, \
$(head -c 8 after) in the image; grants of the guest mapped: $granted; the device model (uid $uid) has \
$opened of /dev/xen open and $foreign pages mapped by privcmd"
}

for bit in off on; do
    dd if=/dev/urandom of=$bit.img bs=64k count=16 2>/dev/null
    sha256sum <$bit.img >$bit-before
done
make_initrd initrd /lab/scenarios/device-model/guest.sh
# A guest on Xen unplugs emulated disks, including virtio-blk-pci, unless an option of its kernel
# prevents it.
start_example blk-hvm $name "$PWD/initrd" "s|^cmdline = \"|&xen_emul_unplug=unnecessary |" "s|^memory = .*|memory = $memory|" \
    "s|^disk = .*|device_model_args_hvm = [$(disk off), $(disk on), \"-qmp\", \"unix:$PWD/qmp,server=on,wait=off\"]|" ||
    fail "xl could not create the guest"
wait_console $name 200 'lab: data-done'

model=$(xenstore-read "/local/domain/$domid/image/device-model-pid")
uid=$(sed -n 's/^Uid:\t\([0-9]*\).*/\1/p' "/proc/$model/status")
opened=$(find "/proc/$model/fd" -lname '/dev/xen/*' -printf '%l\n' | sed 's|.*/||' | sort -u | xargs)
foreign=$(maps privcmd)
granted=$(mapped_grants "$domid" | wc -l)
data off
data on

# The device model saves the guest's memory as it reads it for its devices.
cat >commands <<END
{ "execute": "qmp_capabilities" }
{ "execute": "pmemsave", "id": "saved", "arguments": { "val": 0, "size": $((memory << 20)), "filename": "$PWD/memory" } }
END
wait_for "the device model to read the guest's memory" 60 "case \"\$line\" in *return*saved*) ;; *) false ;; esac" \
    sh -c 'socat -t 60 - "UNIX-CONNECT:$1/qmp" <"$1/commands"' sh "$PWD"
granted=$(mapped_grants "$domid" | wc -l)
tell_guest "$domid" 'go on'
end_guest $name 60

secret=$(guest_said $name secret)
address=$(grep -abo -e "$secret" memory | head -n 1 | cut -d : -f 1)
outcome='secret not found'
[ -z "$address" ] || outcome='secret read'
[ "$granted" = 0 ] || outcome="$outcome, by grants"
result 6 a 'QEMU virtio-blk-pci' 'device model in Dom0' HVM 'memory that the guest shared with nobody' "$outcome" \
    "the guest holds $(echo "$secret" | head -c 8)… in a file in memory; in the $memory MiB that the device model read, it \
stands at $([ -z "$address" ] || printf 'guest address 0x%x' "$address"); grants of the guest mapped: $granted"
