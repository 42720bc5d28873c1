# If a resource runs out, only the device that needs more of it fails, and the log names the
# resource: event channels and grant references of the guest, file descriptors of the daemon.
# guests: pv
# limit: 120
. /lab/dom0/lib.sh

line=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' /lab/xen-configs/blk-pv.cfg)
disks=
for letter in a b c d e f; do
    make_disk "$letter.img" 8
    disks="$disks\"$(echo "$line" | sed -e "s|vdev=xvda|vdev=xvd$letter|" \
        -e "s|target=.*|target=$PWD/$letter.img|")\", "
done

# limited NAME INITRD [OPTION…]: starts a guest with six disks and further options for xl.
limited() {
    local guest=$1 initrd=$2 options=
    shift 2
    [ $# = 0 ] || options=$(printf '\\n%s' "$@")
    start_example blk-pv "$guest" "$initrd" "s|^disk = .*|disk = [$disks]$options|"
}

# A daemon with too few descriptors for all disks: xl fails at once, and the daemon continues to
# run.
stop_daemon
start_daemon prlimit --nofile=20:20 xen-virtiod
! limited pv-no-descriptors /lab/guest/initrd 2>xl-says || fail "20 descriptors were enough"
grep -q 'device refused: .*Too many open files' $daemon_log ||
    fail "the daemon's log does not say why: $(tail -n 5 $daemon_log)"
! grep -q 'rc -9' xl-says || fail "xl failed only after a timeout: $(cat xl-says)"
xen-virtiod stat | grep -q '^  error .*Too many open files' || fail "stat does not say why"
stop_daemon
start_daemon xen-virtiod

# The guest's kernel uses 7 of 11 event channels: four disks get the one that each needs, and none
# is left for queues. 1024 grant references are too few for 8 MiB of concurrent writes.
make_initrd initrd /lab/scenarios/limits/guest.sh
name=pv-limits
limited $name "$PWD/initrd" 'max_event_channels = 11' 'max_grant_frames = 2' ||
    fail "xl could not create the guest"
wait_console $name 60 'lab: exit'
[ "$(xen-virtiod stat | grep -c ': connected$')" = 4 ] ||
    fail "not four disks are connected: $(xen-virtiod stat)"
[ "$(xen-virtiod stat | grep -c '^  error .*the guest cannot connect: .*no event channel is free')" = 2 ] ||
    fail "stat does not say why two disks are not: $(xen-virtiod stat)"
end_guest $name 30
check_nothing_mapped
for written in $(guest_said $name disks); do
    [ "$(sha256sum <"${written#xvd}.img")" = "$(guest_said $name data)" ] ||
        fail "the image of $written does not hold the data that the guest wrote"
done
