# A driver domain is destroyed, and comes back with another domain id, while a guest writes and
# verifies files on a disk that it serves and sends a TCP stream. Dom0 names the next backend to the
# guest, whose module was loaded with reconnect=: the mounted file system and the stream go on, and
# nothing that was answered is lost. In the soak the domain then shuts down by itself, and the
# command that watches names the next one.
# guests:
# soak: pv pvh pv-bookworm pvh-sid
# limit: 300
# needs: fio
. /lab/dom0/lib.sh
. /lab/dom0/under-load.sh

# start_backend: starts the driver domain, with a disk and an interface of Dom0's, and a console log
# of its own.
start_backend() {
    rm -f $consoles/guest-driver-domain.log
    local guest_files=/lab/guest
    start_example driver-domain driver-domain "$PWD/backend-initrd" \
        "\$adisk = [\"format=raw,vdev=xvda,access=rw,backendtype=phy,script=/lab/scenarios/driver-domain-reboot/hotplug,target=$store\"]" \
        '$avirtio = ["type=virtio,device1,transport=mmio,grant_usage=1"]' ||
        fail "xl could not create the driver domain"
    backend=$domid
    wait_console driver-domain 60 'lab: serving'
    # As in the scenario driver-domain. Not earlier: it boots faster on a processor of its own.
    xl vcpu-pin -i driver-domain 0 0
}

# go_on TURN: waits until the guest's disk and interface go on, and the guest has verified the disk
# twice more.
go_on() {
    wait_for "disk and interface to go on" 60 "[ \$((count += 1)) -ge 2 ]" sh -c \
        'tail -n +1 -F "$1" | grep --line-buffered -a "goes on, with domain $2"' \
        sh "$consoles/guest-$name.log" "$backend"
    round=$(guest_said "$name" round)
    sent=$(received)
    wait_console "$name" 120 "lab: round $((round + 2))"
    [ "$(received)" -gt $((sent + 1000000)) ] || fail "the guest sent $(($(received) - sent)) bytes in two rounds"
    echo "turn $1: domain $backend, round $((round + 2))"
}

# received: prints the bytes that came from the guest by the driver domain's present interface.
received() {
    cat "/sys/class/net/$(xenstore-read "/local/domain/0/backend/virtio/$backend/0/tap")/statistics/rx_bytes"
}

receive_streams
# Not the address of TAP interfaces, which the driver domain's bridge has too.
ip link set xenbr0 address 02:00:00:00:00:01
modprobe -a xen-blkback loop
make_disk disk.img 64
mkfs.ext4 -q disk.img
store=$(losetup -f --show "$PWD/disk.img")
(
    guest_files=/lab/guest
    make_initrd backend-initrd /lab/scenarios/driver-domain-reboot/backend.sh /lab/guest/driver-domain.cpio
)
make_initrd guest-initrd /lab/scenarios/driver-domain-reboot/guest.sh
chmod +x /lab/scenarios/driver-domain-reboot/hotplug
start_backend

name=$GUEST-driver-domain-reboot
first=$(sed -n 's/^disk = \["\(.*\),target=.*"\]$/\1,direct-io-safe,target=\/dev\/xvda/p' /lab/xen-configs/blk-driver-domain.cfg)
second=$(disk_lines unused /lab/files/programs.img:r)
start_example "blk-$GUEST" "$name" "$PWD/guest-initrd" "s|^memory = .*|memory = 256|" \
    's|^extra = "|&virtio_msg_xen.reconnect=120 |' "s|^disk = .*|disk = [\"$first\", ${second#*\", }]\nvirtio = [\"type=virtio,device1,transport=mmio,grant_usage=1,backend=driver-domain\"]|" ||
    fail "xl could not create the guest"
guest=$domid
wait_console "$name" 90 'lab: round 1'

count=0
xl destroy "$backend" || fail "xl could not destroy the driver domain"
wait_console "$name" 20 "domain $backend is gone: waiting up to 120 s"
start_backend
xen-virtiod reattach driver-domain >says || fail "xen-virtiod reattach: $(cat says)"
[ "$(wc -l <says)" = 2 ] || fail "xen-virtiod reattach says: $(cat says)"
go_on 1

# Another device of the driver domain's, which does not wait.
xen-virtiod attach "$name" rng --backend driver-domain || fail "xen-virtiod attach"
wait_console "$name" 20 "virtio device 4 of domain $backend"
wait_console "$name" 20 'will not wait for another backend'

# by_itself: has the domain shut down, and the command that watches name the next one.
by_itself() {
    # shellcheck disable=SC2034 # wait_for evaluates it
    count=0
    xen-virtiod reattach --watch >watch-says 2>&1 &
    watcher=$!
    tell_guest "$backend" end
    wait_console driver-domain 20 'lab: exit'
    tell_guest "$backend" 'the console is read'
    wait_gone "$backend" 30
    start_backend
    go_on 2
    kill $watcher
    wait $watcher || fail "xen-virtiod reattach --watch: $(cat watch-says)"
}
[ "$GUEST$KERNEL" = pv ] || by_itself

tell_guest "$guest" stop
domid=$guest
end_guest "$name" 120
xl destroy "$backend"
wait_gone "$backend" 30
losetup -d "$store"
