# Storage runs full under a guest's disks, one in memory and one on ext4 without the page cache. The
# disks pause; when there is space again, `xen-virtiod resume` has them go on, and the guest sees no
# error.
# guests: pv
# soak: pvh
# limit: 120
. /lab/dom0/lib.sh

settings=/etc/xen-virtiod.toml
name=$GUEST-storage-full
clean_up() {
    rm -f $settings
    umount memory volume
    rmmod brd
}
trap 'clean_up >/dev/null 2>&1' EXIT

cat >$settings <<E
[default.disk]
on-error = "pause-if-full"
E
mkdir memory volume
mount -t tmpfs -o size=8M small memory
modprobe -r brd
modprobe brd rd_nr=1 rd_size=65536
mke2fs -q -t ext4 -b 4096 -m 0 -O ^has_journal -E lazy_itable_init=0 /dev/ram0
mount -t ext4 /dev/ram0 volume
truncate -s 16M memory/disk.img volume/disk.img
# 8 MiB are left.
free=$(df --output=avail -B 1M volume | tail -n 1)
fallocate -l $((free - 8))M volume/filler

make_initrd initrd /lab/scenarios/storage-full/guest.sh
start_guest "$name" "$PWD/initrd" "$PWD/memory/disk.img" "$PWD/volume/disk.img:direct" ||
    fail "xl could not create the guest"
wait_console "$name" 60 'lab: writing'

# paused: prints the number of paused disks.
paused() {
    xen-virtiod stat | grep -c '^  paused .*No space left' || true
}
# shellcheck disable=SC2016 # wait_for evaluates it
wait_for "both disks to be paused" 60 '[ "$(paused)" = 2 ]' sh -c 'while echo; do sleep 0.2; done'
xen-virtiod stat | grep '^  paused'
grep -c 'disk paused: .*No space left' $daemon_log | grep -qx 2 ||
    fail "the log does not tell of two paused disks"

# Without space nothing is gained.
xen-virtiod resume >resumed
cat resumed
[ "$(grep -c 'goes on$' resumed)" = 2 ] || fail "resume does not name two disks"
# shellcheck disable=SC2016
wait_for "both disks to be paused again" 60 '[ "$(paused)" = 2 ]' sh -c 'while echo; do sleep 0.2; done'

mount -o remount,size=32M memory
rm volume/filler
xen-virtiod resume
end_guest "$name" 60
for disk in memory volume; do
    said=$(guest_said "$name" "wrote $disk")
    [ "$said" = "$(head -c 12M $disk/disk.img | sha256sum)" ] ||
        fail "the image in $disk does not hold what the guest wrote"
done
xen-virtiod resume | grep -x 'no such disk is paused'
check_nothing_mapped
