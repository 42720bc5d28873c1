# The demo's scenario: the guest makes a file system on one disk and reads another disk completely.
# It also runs with other kernels.
# limit: 120
# guests: pv pvh hvm pv-bookworm
# soak: pvh-sid
. /lab/dom0/lib.sh

make_disk "$PWD/files.img" 64
head -c 8M /dev/urandom >random.img
make_initrd initrd /lab/scenarios/files/guest.sh /lab/guest/tree.cpio
run_guest 100 "$GUEST-files" "$PWD/initrd" "$PWD/files.img" "$PWD/random.img"
check_nothing_mapped

# Check the images against the guest's results.
e2fsck -fn files.img || fail "the guest left a damaged file system"
mkdir mnt
mount -o loop,ro files.img mnt
(cd mnt/tree && sha256sum --quiet -c ../sums) || fail "files do not match the guest's checksums"
[ "$(wc -l <mnt/sums)" = "$(guest_said "$GUEST-files" files)" ] || fail "the image lacks files"
umount mnt
seen=$(guest_said "$GUEST-files" random)
[ "$seen" = "$(sha256sum <random.img)" ] ||
    fail "the guest read data that the random image does not hold: its hash is $seen"

# For the demo's table.
echo "$domid" >"$RESULTS/domid"
{
    echo "$(guest_said "$GUEST-files" files) files compared, by the guest and by Dom0"
    echo "$(($(wc -c <random.img) / 1048576)) MiB of a random image hashed by both"
} >"$RESULTS/checked"
