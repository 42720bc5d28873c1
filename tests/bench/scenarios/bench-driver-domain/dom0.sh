# As bench-guests, but a driver domain has the bridges and serves the interfaces of both guests:
# three domains in a chain. It shares Dom0's processor.
# guests: pv pvh
# limit: 1500
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh
. /lab/scenarios/bench-net/bridges.sh
. /lab/scenarios/bench-guests/pair.sh

plugging=
trap '[ -z "$plugging" ] || kill $plugging; rm -f plugged' EXIT
(
    guest_files=/lab/guest
    make_initrd backend-initrd /lab/scenarios/bench-driver-domain/backend.sh \
        /lab/guest/driver-domain.cpio /lab/files/modules.cpio
)
start_example driver-domain driver-domain "$PWD/backend-initrd" || fail "xl could not create the driver domain"
backend=$domid
wait_console driver-domain 60 'lab: serving'
# As in the scenario driver-domain. Not earlier: it boots faster on a processor of its own.
xl vcpu-pin -i driver-domain 0 0

# xen-netback waits for a script, which xl's daemon would run in the driver domain.
plug() {
    local keys=/local/domain/$backend/backend/vif path
    while read -r path; do
        case $path in
        "$keys"/*/*/hotplug-status | "$keys"/*/*/state)
            path=${path%/*}
            # Not while the interface ends.
            case "$(xenstore-read "$path/state" 2>/dev/null) $(xenstore-read "$path/hotplug-status" 2>/dev/null)" in
            [24]*connected) ;;
            [24]*) xenstore-write "$path/hotplug-status" connected ;;
            esac
            ;;
        esac
    done <plugged
}
mkfifo plugged
xenstore-watch "/local/domain/$backend/backend/vif" >plugged 2>/dev/null &
plugging=$!
plug &

measure_pair "$GUEST-bench-driver-domain" guest_by_domain "$(network driver-domain)"
domid=$backend
tell_guest "$domid" end
end_guest driver-domain 40
