# An untrusted backend sees the buffers of requests and no byte beside them, and all requests
# succeed. The backend snoop, which replaces xen-virtiod here, searches every page that it maps.
# guests: pv
# soak: pvh
# limit: 120
. /lab/dom0/lib.sh

# disks: prints the guest's disks: the configuration's, one with a trusted backend, and another one
# with an untrusted backend.
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
grep -q 'looked through [1-9][0-9][0-9]* pages' report || fail "snoop mapped fewer than 10 pages"
! grep concealed report || fail "the backend saw bytes beside a buffer"
# The control: snoop finds bytes that the guest does not hide from a trusted backend.
grep -q 'found overlooked-by-trust' report ||
    fail "snoop does not find bytes that a guest shows to a trusted backend"

for letter in a b c d e f g h i j k; do
    head -c 512 /dev/zero | tr '\0' $letter
done >expected
for disk in untrusted trusted; do
    busybox cmp -n "$(wc -c <expected)" expected $disk.img ||
        fail "$disk.img does not hold the data that the guest wrote"
done
e2fsck -fn files.img || fail "the guest left a damaged file system"
