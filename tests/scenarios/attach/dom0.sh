# Devices of all types are attached to a guest that runs, used and detached. A disk goes on with
# another target, or with its own if that cannot be. A disk that the guest uses stays, unless it is
# taken away by force. An attached disk is there after a reboot, and after
# xl save and xl restore, and a detached one is not. A disk that cannot be served leaves nothing.
# Disks that come and go while the guest works with another one leave nothing behind.
# guests: pv
# soak: pvh hvm pv-bookworm pvh-sid
# limit: 900
. /lab/dom0/lib.sh

# The soak has 100 cycles.
CYCLES=5
[ "$GUEST$KERNEL" = pv ] || CYCLES=100
second=xvdb third=xvdc numbers="51712 51728"
[ "$GUEST" != hvm ] || second=xvdf third=xvdg numbers="51776 51792"

name=$GUEST-attach
make_disk first.img 8
truncate -s 4M second.img
head -c 1M /dev/urandom | dd of=second.img conv=notrunc 2>/dev/null
qemu-img create -q -f qcow2 third.qcow2 8M
make_initrd initrd /lab/scenarios/attach/guest.sh
start_example "blk-$GUEST" "$name" "$PWD/initrd" "s|^on_reboot = .*|on_reboot = \"restart\"|" \
    "s|^disk = .*|disk = [$(disk_lines "$PWD/first.img")]|" || fail "xl could not create the guest"
wait_console "$name" 90 'lab: ready'

# guest LINE: has the guest execute a line.
lines=0
guest() {
    lines=$((lines + 1))
    tell_guest "$domid" "$lines $*"
    wait_console "$name" 60 "lab: line $lines status"
    tr -d '\r' <"$consoles/guest-$name.log" | grep -q "^lab: line $lines status 0\." || fail "the guest: $*"
}

# says TEXT COMMAND…: runs a command that succeeds, and fails unless it prints the text.
says() {
    local text=$1 said
    shift
    said=$("$@" 2>&1) || fail "$*: $said"
    case $said in *"$text"*) ;; *) fail "$* says $said" ;; esac
}

# refused TEXT COMMAND…: runs a command, which has to fail and to print the text.
refused() {
    local text=$1 said
    shift
    ! said=$("$@" 2>&1) || fail "$* did not fail: $said"
    case $said in *"$text"*) ;; *) fail "$* says $said" ;; esac
}

# nodes: prints what XenStore has of the guest's devices, without what changes in use.
nodes() {
    xenstore-ls -f | grep -E "^/(libxl|local/domain)/$domid/device|backend/virtio(_disk)?/$domid" | sed 's/ = .*//' | sort
}

# shape NUMBER: prints the keys of a disk and who may access them, without the one that xl adds for
# PV guests.
shape() {
    xenstore-ls -fp | grep -E "virtio_disk/(.*/)?$1[/ ]" | sed "s/$1/NUMBER/g; s/ = \".*\"//" | grep -v /protocol | sort
}

# A disk.
before=$(nodes)
says "attached $second to $name" xen-virtiod attach "$name" disk "target=$PWD/second.img" "vdev=$second"
guest "wait_for /dev/vdb 20 test -b /dev/vdb; echo lab: second \$(sum vdb)"
[ "$(guest_said "$name" second)" = "$(head -c 1M second.img | sha256sum | cut -d " " -f 1)" ] || fail "the guest read other data"
by_xl=$(shape "${numbers% *}")
[ "$(shape "${numbers#* }")" = "$by_xl" ] || fail "xl wrote $by_xl, and xen-virtiod $(shape "${numbers#* }")"
says "had $second already" xen-virtiod attach "$domid" disk "target=$PWD/second.img" "vdev=$second"
says '"attached":false' xen-virtiod attach "$name" disk "target=$PWD/second.img" --json
says "$PWD/second.img" xen-virtiod list
says '"state":"connected"' xen-virtiod list "$name" --json
refused "is attached already, and differs" xen-virtiod attach "$name" disk "target=$PWD/third.qcow2" "vdev=$second"
xl list -l "$domid" | grep -q "$PWD/second.img" || fail "libxl's record does not have the disk"

# Another target: an overlay, and back.
original=$(guest_said "$name" second)
qemu-img create -q -f qcow2 -b second.img -F raw overlay.qcow2
says "$second of $name has the target" xen-virtiod retarget "$name" "$second" "target=$PWD/overlay.qcow2"
guest "echo lab: second \$(sum vdb)"
[ "$(guest_said "$name" second)" = "$original" ] || fail "the guest read other data from the overlay"
guest "dd if=/dev/zero of=/dev/vdb bs=64k count=16 conv=fsync 2>/dev/null; echo lab: second \$(sum vdb)"
[ "$(guest_said "$name" second)" = "$(head -c 1M /dev/zero | sha256sum | cut -d " " -f 1)" ] || fail "the overlay lost a write"
[ "$(head -c 1M second.img | sha256sum | cut -d " " -f 1)" = "$original" ] || fail "the guest wrote below the overlay"
xl list -l "$domid" | grep -q "$PWD/overlay.qcow2" || fail "libxl's record does not have the overlay"
truncate -s 1M small.img
refused "must not shrink" xen-virtiod retarget "$name" "$second" "target=$PWD/small.img"
truncate -s 8M damaged.qcow2
refused "goes on with the earlier one" xen-virtiod retarget "$name" "$second" "target=$PWD/damaged.qcow2"
says "$second of $name has the target" xen-virtiod retarget "$name" "$second" "target=$PWD/second.img"
guest "echo lab: second \$(sum vdb)"
[ "$(guest_said "$name" second)" = "$original" ] || fail "the guest read other data from its first target"

# In use, and not.
guest "exec 5</dev/vdb"
refused "the guest uses $second" xen-virtiod detach "$name" "$second" --wait 2
guest "sum vdb; exec 5<&-"
says "detached $second from $name" xen-virtiod detach "$name" "$second"
guest "is_gone /dev/vdb"
says "$name had no $second" xen-virtiod detach "$name" "$second"
[ "$(nodes)" = "$before" ] || fail "detach leaves something in XenStore: $(nodes)"
! xl list -l "$domid" | grep "$PWD/second.img" || fail "libxl's record still has the disk"

# What cannot be served leaves nothing.
refused "cannot use the target" xen-virtiod attach "$name" disk target=/no/such.img
truncate -s 0 empty.img
refused "refuses the device" xen-virtiod attach "$name" disk "target=$PWD/empty.img"
refused "refuses the device" xen-virtiod attach "$name" disk "target=$PWD/first.img" "vdev=$third"
refused "no domain has the name, id" xen-virtiod attach nobody rng
[ "$(nodes)" = "$before" ] || fail "a refused disk leaves something in XenStore: $(nodes)"

# Other types. The last one goes by force.
modprobe -a tun bridge
ip link add xenbr0 type bridge
ip link set xenbr0 up
trap 'ip link delete xenbr0 2>/dev/null || true' EXIT
for type in net rng vsock console; do
    says "attached virtio/0 to $name" xen-virtiod attach "$name" $type
    case $type in
    net) there=/sys/class/net/eth0 ;;
    rng) there=/dev/hwrng ;;
    vsock) there=/dev/vsock ;;
    console) there=/dev/hvc1 ;;
    esac
    guest "wait_for $there 20 test -e $there"
    [ $type != rng ] || guest "dd if=/dev/hwrng of=/dev/null bs=64 count=1"
    says "detached virtio/0 from $name" xen-virtiod detach "$name" virtio/0
    guest "is_gone /sys/bus/xen/devices/virtio-0"
done

# By the scripts for other toolstacks.
hooks=/lab/xen-configs/hooks
attached() {
    guest "wait_for /dev/vdb 20 test -b /dev/vdb"
    "$@" || fail "$* failed"
    guest "is_gone /dev/vdb"
}
$hooks/libvirt "$name" started begin - <<EOF || fail "the hook for libvirt failed"
<domain type='xen'><name>$name</name><metadata>
    <xv:devices xmlns:xv="urn:xen-virtiod">
      <xv:device>disk target=$PWD/second.img vdev=$second</xv:device>
    </xv:devices>
</metadata></domain>
EOF
attached xen-virtiod detach "$name" "$second"
loop=$(losetup -f --show second.img)
$hooks/qubes attach "$name" "Domain-0:${loop#/dev/}" ro || fail "the script for Qubes OS failed"
attached $hooks/qubes detach "$name" "Domain-0:${loop#/dev/}"
losetup -d "$loop"
mkdir bin
printf '#!/bin/sh\necho "disk target=%s; rng"\n' "$PWD/second.img" >bin/xe
chmod +x bin/xe
uuid=$(xenstore-read "/local/domain/$domid/vm")
PATH=$PWD/bin:$PATH $hooks/xapi -vmuuid "${uuid#/vm/}" -reason none || fail "the script for xapi failed"
says "detached virtio/0" xen-virtiod detach "$name" virtio/0
attached xen-virtiod detach "$name" "$second"

# Over a reboot, and over save and restore.
says "attached" xen-virtiod attach "$name" disk "target=$PWD/third.qcow2" "vdev=$third"
says "attached $second" xen-virtiod attach "$name" disk "target=$PWD/second.img" "vdev=$second"
guest "wait_for /dev/vdc 20 test -b /dev/vdc"
says "detached $third from $name" xen-virtiod detach "$name" "$third"
rebooted=$domid
tell_guest "$domid" "0 reboot -f"
wait_gone "$rebooted" 60
wait_for "the guest to be ready again" 90 \
    "[ \"\$(tr -d '\\r' <'$consoles/guest-$name.log' | grep -c '^lab: ready')\" = 2 ]" tail -n +1 -F "$consoles/guest-$name.log"
domid=$(xl domid "$name")

# check_second: fails unless the guest has the first two disks, and the right data.
check_second() {
    [ "$(nodes | grep -c '^/libxl/.*/virtio_disk/.*/state$')" = 2 ] || fail "the guest has other devices: $(nodes)"
    guest "wait_for /dev/vdb 20 test -b /dev/vdb; echo lab: second \$(sum vdb)"
    [ "$(guest_said "$name" second)" = "$(head -c 1M second.img | sha256sum | cut -d " " -f 1)" ] || fail "the guest read other data"
}
head -c 1M /dev/urandom | dd of=second.img conv=notrunc 2>/dev/null
check_second
# xl cannot save guests on Arm.
if [ "$(uname -m)" = x86_64 ]; then
    xl save "$domid" saved || fail "xl could not save the guest"
    xl restore saved || fail "xl could not restore the guest"
    domid=$(xl domid "$name")
    check_second
fi

# By force.
guest "exec 5</dev/vdb"
says "detached $second from $name" xen-virtiod detach "$name" "$second" --force
guest "is_gone /dev/vdb; ! dd if=/proc/self/fd/5 of=/dev/null bs=64k count=1 iflag=direct; exec 5<&-"

# Again and again, beside a disk in use.
guest "(while [ ! -e /tmp/stop ]; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null || touch /tmp/wrong; done) & worker=\$!"
used() {
    echo "$(daemon_uses), $(nodes | wc -l) nodes"
}
before=$(used)
for cycle in $(seq $CYCLES); do
    says "attached $second" xen-virtiod attach "$name" disk "target=$PWD/second.img" "vdev=$second"
    guest "wait_for /dev/vdb 20 test -b /dev/vdb; sum vdb >/dev/null"
    says "detached $second" xen-virtiod detach "$name" "$second"
done
guest "is_gone /dev/vdb; touch /tmp/stop; wait \$worker; [ ! -e /tmp/wrong ]"
after=$(used)
echo "$cycle cycles; $after; before: $before"
[ "$after" = "$before" ] || fail "there were $before, and are $after"
tell_guest "$domid" ""
end_guest "$name" 60
check_nothing_mapped
