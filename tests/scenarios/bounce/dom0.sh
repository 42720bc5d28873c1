# A backend that is not trusted sees the buffers of requests and nothing beside them, while all of
# them are carried out rightly. What it can see is told by one that looks: snoop, in xen-virtiod's
# place.
# guests: pv
# soak: pvh
# limit: 120
. /lab/dom0/lib.sh

# disks: the disks for the guest: the configuration's, one whose backend is trusted, and one more
# whose backend is not.
disks() {
    local line
    line=$(sed -n 's/^disk = \["\(.*\)target=.*"\]$/\1/p' /lab/xen-configs/blk-untrusted.cfg)
    echo "\"${line}target=$PWD/untrusted.img\""
    echo "\"$(echo "$line" | sed 's/vdev=xvda/vdev=xvdb/; s/untrusted,//')target=$PWD/trusted.img\""
    echo "\"$(echo "$line" | sed 's/vdev=xvda/vdev=xvdc/')target=$PWD/files.img\""
}

make_disk untrusted.img 1
make_disk trusted.img 1
make_disk files.img 64
make_initrd initrd /lab/scenarios/bounce/guest.sh /lab/guest/tree.cpio
name=$GUEST-bounce

stop_daemon
start_daemon snoop "$PWD/report" concealed-by-pool concealed-by-trust overlooked-by-trust \
    concealed-by-parameter
start_example blk-untrusted "$name" "$PWD/initrd" "s|^type = .*|type = \"$GUEST\"|" \
    "s|^disk = .*|disk = [$(disks | paste -sd,)]|" || fail "xl could not create the guest"
end_guest "$name" 70
check_nothing_mapped
stop_daemon
start_daemon xen-virtiod

cat report
grep -q 'looked through [1-9][0-9][0-9]* pages' report || fail "snoop saw next to nothing"
! grep concealed report || fail "the backend saw what lies beside a buffer"
# This is what it would have seen: snoop does look, and there is something to find.
grep -q 'found overlooked-by-trust' report ||
    fail "snoop does not find what a guest does not hide from a backend that it trusts"

for letter in a b c d e f g h i j k; do
    head -c 512 /dev/zero | tr '\0' $letter
done >expected
for disk in untrusted trusted; do
    busybox cmp -n "$(wc -c <expected)" expected $disk.img || fail "$disk.img is not what the guest wrote"
done
e2fsck -fn files.img || fail "the guest left a damaged file system"
