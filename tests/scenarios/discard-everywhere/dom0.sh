# Discard and write-zeroes on storage that does not support both: a file on vfat supports neither, a
# block device may discard but not zero, and qcow2 version 2 cannot mark a cluster as zero. The
# device offers discard where the storage supports it and write-zeroes everywhere, and no request
# fails.
# guests:
# soak: pvh
# limit: 120
. /lab/dom0/lib.sh

modprobe -r brd null_blk
modprobe brd rd_nr=1 rd_size=16384
modprobe null_blk nr_devices=1 gb=1 memory_backed=1 discard=1
make_disk "$PWD/fat" 24
busybox mkdosfs fat >/dev/null
mkdir vfat
mount -o loop fat vfat
trap 'umount vfat; rmmod brd null_blk' EXIT
make_disk "$PWD/vfat/disk.img" 16
qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 16M
make_disk "$PWD/zeros" 4
# Print what the devices support; null_blk must support discard and not write-zeroes.
for device in ram0 nullb0; do
    echo "$device: discard $(cat /sys/block/$device/queue/discard_max_bytes)," \
        "write-zeroes $(cat /sys/block/$device/queue/write_zeroes_max_bytes)"
done
[ "$(cat /sys/block/nullb0/queue/discard_max_bytes)" -gt 0 ]
[ "$(cat /sys/block/nullb0/queue/write_zeroes_max_bytes)" = 0 ]

make_initrd initrd /lab/scenarios/discard-everywhere/guest.sh
name=$GUEST-discard-everywhere
run_guest 90 "$name" "$PWD/initrd" "$PWD/vfat/disk.img:discard" /dev/ram0:discard /dev/nullb0:discard \
    "$PWD/old.qcow2:discard"
check_nothing_mapped

# offered DISK: checks whether the device offered discard to the guest.
offered() {
    [ "$(guest_said "$name" "$1-discard")" -gt 0 ]
}
! offered vda || fail "the disk on vfat offers discard"
for disk in vdb:ram0 vdc:nullb0; do
    if [ "$(cat "/sys/block/${disk#*:}/queue/discard_max_bytes")" -gt 0 ]; then
        offered "${disk%:*}" || fail "the disk on ${disk#*:} does not offer discard"
    else
        ! offered "${disk%:*}" || fail "the disk on ${disk#*:} offers discard"
    fi
done
offered vdd || fail "the disk with the qcow2 version 2 image does not offer discard"
# The device no longer has the discarded data.
[ "$(dd if=/dev/nullb0 bs=1M skip=8 count=4 2>/dev/null | sha256sum)" = "$(sha256sum <zeros)" ] ||
    fail "the device still has the discarded data"
qemu-img check -q old.qcow2 ||
    fail "the guest left a damaged image: $(qemu-img check old.qcow2 2>&1)"
! grep -F 'request failed' $daemon_log | grep -F "guest=$domid" || fail "requests failed"
