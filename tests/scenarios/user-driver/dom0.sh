# An unprivileged process drives a disk without a kernel module. It reads and writes the right data,
# and the backend maps only pages that the process granted.
# matrix: pv pvh hvm
# guests: pv
# soak: pvh
# limit: 150
. /lab/dom0/lib.sh

# The number of pages that user-driver grants: its pool and the message page.
granted=65

head -c 1M /dev/urandom >disk.img
sha256sum <disk.img >before
make_initrd initrd /lab/scenarios/user-driver/guest.sh
name=$GUEST-user-driver
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
wait_console "$name" 90 'lab: idle'
# The guest has unloaded the kernel's driver, so none of the driver's grants is mapped.
check_nothing_mapped "$domid"
tell_guest "$domid" drive
wait_console "$name" 40 'lab: driving'
mapped=$(mapped_grants "$domid" | wc -l)
tell_guest "$domid" 'go on'
end_guest "$name" 70
check_nothing_mapped

outcome='works, data right, only its grants mapped'
[ "$mapped" -ge 1 ] && [ "$mapped" -le $granted ] || outcome="$mapped pages mapped of $granted granted"
guest_said "$name" read >./read
guest_said "$name" written >written
guest_said "$name" read-back >read-back
sha256sum <disk.img >after
busybox cmp -s read before || outcome='works, data read is wrong'
busybox cmp -s read-back written || outcome='works, data read back is wrong'
busybox cmp -s written after || outcome='works, data written is wrong'
opened=$(guest_said "$name" opened)
[ "$opened" = "evtchn gntalloc xenbus" ] || outcome="the process has opened $opened"
case $(guest_said "$name" uid) in
'1000 1000 1000 1000') ;;
*) outcome="the process has uid $(guest_said "$name" uid)" ;;
esac
result 8 b xen-virtiod Dom0 "$(echo "$GUEST" | tr '[:lower:]' '[:upper:]')" "an unprivileged process's grants" \
    "$outcome" "uid $(guest_said "$name" uid), capabilities $(guest_said "$name" capabilities), opened of /dev/xen: \
$opened; granted $granted pages; of the guest's pages mapped: 0 before, $mapped while it drives the disk; 1 MiB \
read: sha256 $(head -c 8 read) there, $(head -c 8 before) in the image; 1 MiB written: $(head -c 8 written) there, \
read back $(head -c 8 read-back), $(head -c 8 after) in the image"
[ "$outcome" = 'works, data right, only its grants mapped' ] || fail "$outcome"
