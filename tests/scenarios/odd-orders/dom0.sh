# The toolstack in odd orders: guests created and destroyed as fast as xl can, destroyed while they
# boot, connect and are saved; a guest that reboots again and again; a second guest with a name or a
# disk that is taken; a new name, and a new configuration for the next boot; a daemon that starts
# after its guest; a guest whose quota of XenStore is used up, and a xenstored that answers late.
# Each has the outcome that it has with xen-blkback, and nothing is left of any guest.
# guests:
# soak: pv pvh hvm
# not-on-arm: xl cannot save guests there
# limit: 1800
. /lab/dom0/lib.sh

TURNS=50
[ "$GUEST" = pv ] || TURNS=20

name=$GUEST-odd-orders
make_disk disk.img 4
make_disk other.img 4
make_initrd initrd /lab/scenarios/odd-orders/guest.sh
mkdir rebooting
touch rebooting/reboot
(cd rebooting && echo reboot | busybox cpio -o -H newc 2>/dev/null) >reboot.cpio
make_initrd reboot-initrd /lab/scenarios/odd-orders/guest.sh reboot.cpio

# say PART: prints what comes next.
say() {
    echo "$1 ($(cut -d ' ' -f 1 /proc/uptime))"
}

# start NAME [INITRD]: starts a guest with the disk, and a console log of its own. It may reboot.
start() {
    rm -f "$consoles/guest-$1.log"
    start_example "blk-$GUEST" "$1" "$PWD/${2:-initrd}" "s|^on_reboot = .*|on_reboot = \"restart\"|" \
        "s|^disk = .*|disk = [$(disk_lines "$PWD/disk.img")]|"
}

# destroy WHAT [LIMIT]: destroys the guest, and checks that nothing of it is left.
destroy() {
    xl destroy "$domid" 2>says || fail "xl destroy, $1: $(cat says)"
    [ ! -s says ] || fail "xl destroy, $1, says: $(cat says)"
    wait_gone "$domid" "${2:-30}"
    ! xenstore-exists "/local/domain/0/backend/virtio_disk/$domid" ||
        fail "after $1: $(xenstore-ls /local/domain/0/backend)"
}

# destroy_in_state STATE: destroys the guest once its frontend has this state.
destroy_in_state() {
    local key="/local/domain/$domid/device/virtio_disk/$vdev/state"
    wait_for "the frontend's state $1" 60 "[ \"\$(xenstore-read $key 2>/dev/null)\" = $1 ]" xenstore-watch "$key"
    destroy "state $1"
}

start "$name" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: used'
vdev=$(xenstore-list "/local/domain/$domid/device/virtio_disk")
destroy 'the first'
before=$(daemon_uses)

say "create and destroy, $TURNS times"
turn=0
while [ $turn -lt $TURNS ]; do
    turn=$((turn + 1))
    start "$name" || fail "xl could not create the guest for the time $turn"
    destroy "turn $turn"
done

say "destroy while it boots and connects"
for state in 1 3 4; do
    start "$name" || fail "xl could not create the guest"
    destroy_in_state $state
done

say "destroy while it is saved"
start "$name" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: used'
process=$(guest_process "$domid") || fail "the guest has no process"
# Its module waits for the answer.
kill -STOP "$process"
xl save "$domid" saved >save-says 2>&1 &
saver=$!
# shellcheck disable=SC2034 # wait_for evaluates it
asked=0
wait_for "xl to ask the guest" 20 "[ \$((asked += 1)) -ge 2 ]" \
    xenstore-watch "/local/domain/$domid/control/shutdown"
kill -CONT "$process"
# xl has pages of the guest mapped until it gives the save up, after 60 s.
destroy 'the save' 90
! wait $saver || fail "xl saved a guest that was destroyed"

say "reboot, $TURNS times"
start "$name" reboot-initrd || fail "xl could not create the guest"
first=$domid
wait_for "$TURNS reboots" $((60 + 20 * TURNS)) \
    "domid=\$(xl domid $name 2>/dev/null) && [ \$domid -ge $((first + TURNS)) ]" xenstore-watch @introduceDomain
until domid=$(xl domid "$name" 2>/dev/null) && xl destroy "$domid" 2>/dev/null; do
    # It is between two boots, or went over to the next.
    timeout 5 xenstore-watch -n 2 @introduceDomain >/dev/null || true
done
for one in $(seq "$first" $((domid + 1))); do
    ! xl list "$one" >/dev/null 2>&1 || wait_gone "$one" 30
done

say "a name and a disk that are taken"
start "$name" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: used'
guest=$domid
cp "/run/$name.cfg" first.cfg
! start_guest "$name" "$PWD/initrd" "$PWD/other.img" 2>says || fail "xl created two guests of one name"
logged=$(wc -c <$daemon_log)
! start "$name-2" 2>says || fail "two guests have the same disk"
tail -c "+$((logged + 1))" $daemon_log | grep -q 'is in use' || fail "xl says: $(cat says)"
domid=$guest
tell_guest "$domid" use
wait_console "$name" 20 'lab: used again'

say "another name, and another configuration"
xl rename "$name" renamed || fail "xl could not rename the guest"
sed -e 's|^name = .*|name = "renamed"|' -e "s|target=$PWD/disk.img|target=$PWD/other.img|" \
    first.cfg >/run/renamed.cfg
xl config-update "$domid" /run/renamed.cfg >says 2>&1 || fail "xl config-update: $(cat says)"
xen-virtiod list renamed | grep -q "$PWD/disk.img" || fail "the running guest has another disk: $(xen-virtiod list renamed)"
before_reboot=$domid
tell_guest "$domid" reboot
wait_for "the guest to reboot" 60 "domid=\$(xl domid renamed 2>/dev/null) && [ \$domid != $before_reboot ]" \
    xenstore-watch @introduceDomain
domid=$(xl domid renamed)
wait_for "the guest's disk to be connected" 60 \
    "[ \"\$(xenstore-read /local/domain/$domid/device/virtio_disk/$vdev/state 2>/dev/null)\" = 4 ]" \
    xenstore-watch "/local/domain/$domid/device/virtio_disk/$vdev/state"
[ "$(xl domid renamed)" = "$domid" ] || fail "the guest rebooted once more"
xen-virtiod list renamed | grep "$PWD/other.img" || fail "the guest has: $(xen-virtiod list renamed)"
destroy 'the configuration'

say "a daemon that starts after the guest"
stop_daemon
start "$name" &
starter=$!
wait_for "the guest's directory" 20 "xenstore-ls /local/domain/0/backend/virtio_disk 2>/dev/null | grep -q 'state = \"1\"'" \
    xenstore-watch /local/domain/0/backend/virtio_disk
start_daemon xen-virtiod
wait $starter || fail "xl could not create the guest"
domid=$(xl domid "$name")
wait_console "$name" 60 'lab: used'

say "XenStore's quota"
# Nodes of the guest that Dom0 makes count for the guest.
nodes=$(seq -f "/local/domain/$domid/data/%g x" 1 1100)
# shellcheck disable=SC2086 # paths and values are words
xenstore-write $nodes
said=$(xen-virtiod attach "$name" disk "target=$PWD/other.img") || fail "xen-virtiod attach: $said"
device=${said#attached }
device=${device%% *}
# The guest cannot write its keys. It keeps its first disk.
wait_console "$name" 20 'writing to device'
tell_guest "$domid" use
wait_console "$name" 20 'lab: used again'
xenstore-rm "/local/domain/$domid/data"
xen-virtiod detach --force "$name" "$device" || fail "xen-virtiod detach"
xen-virtiod attach "$name" disk "target=$PWD/other.img" || fail "xen-virtiod attach"
wait_console "$name" 20 '[vdb]'
destroy 'the quota'

say "a xenstored that answers late"
xenstored=$(cat /run/xen/xenstored.pid)
start "$name" || fail "xl could not create the guest"
for turn in 1 2 3; do
    kill -STOP "$xenstored"
    sleep 3
    kill -CONT "$xenstored"
    sleep 1
done
wait_console "$name" 60 'lab: used'
destroy 'the late XenStore'

check_nothing_mapped
after=$(daemon_uses)
[ "$after" = "$before" ] || fail "there were $before, and are $after"
