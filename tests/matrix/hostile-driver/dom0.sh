# Row 7: a host of type (c), on which the driver decides whether the host uses only grants, compared
# with xen-virtiod, which always does. An unprivileged process drives the disk, and makes it write a
# page of another process's memory to the disk. The process knows nothing of the page but its frame.
# guests: pv pvh
# limit: 300
. /lab/dom0/lib.sh

# row HOST BACKEND DMA OUTCOME EVIDENCE: writes a result of row 7.
row() {
    result 7 "$1" "$2" Dom0 "$(echo "$GUEST" | tr a-z A-Z)" "$3" "$4" "$5"
}

# judge HOST BACKEND DMA WORD: writes the result of an attempt, which the guest printed under WORD.
judge() {
    local outcome says got
    says=$(guest_said "$name" "$4-says") got=$(guest_said "$name" "$4-got")
    [ -n "$got" ] || fail "the guest did not print the checksum of the process's data"
    case $says in
    *'FEATURES_OK not set'*) outcome='FEATURES_OK not set' ;;
    *'DEVICE_NEEDS_RESET set'*) outcome='refused, DEVICE_NEEDS_RESET' ;;
    '') outcome='reads something else' ;;
    *) fail "the process failed with an unexpected error: $says" ;;
    esac
    [ "$got" != "$secret" ] || outcome="reads another process's memory"
    if [ "$outcome" = "reads another process's memory" ]; then
        says="4096 bytes, sha256 $(echo "$got" | head -c 8), are the other's; the disk has them too: $(
            [ "$(head -c 4096 disk.img | sha256sum)" = "$secret" ] && echo yes || echo no
        )"
    elif [ "$(sha256sum <disk.img)" != "$before" ]; then
        outcome="$outcome, and the image is not what it was"
    fi
    row "$1" "$2" "$3" "$outcome" "$says"
}

# serve HOST BACKEND: runs a guest with its two attempts, and writes the result of each.
serve() {
    name=$GUEST-$1-hostile
    head -c 1M /dev/urandom >disk.img
    before=$(sha256sum <disk.img)
    start_guest "$name" "$PWD/initrd" "$PWD/disk.img" || fail "xl could not create the guest"
    wait_console "$name" 60 'lab: frame'
    secret=$(guest_said "$name" secret) frame=$(guest_said "$name" frame)
    [ "$GUEST" != pv ] || frame=$(machine_frame "$domid" "$frame")
    # The control: Dom0 finds the secret in the frame.
    foreign-map "$domid" "$frame" | sha256sum | grep -qxF "$secret" ||
        fail "the frame $frame does not hold the secret"
    tell_guest "$domid" "$frame"
    wait_console "$name" 30 'lab: accepting-got'
    judge "$1" "$2" 'ACCESS_PLATFORM, raw addresses' accepting
    tell_guest "$domid" next
    wait_console "$name" 30 'lab: ignoring-got'
    judge "$1" "$2" 'no ACCESS_PLATFORM, raw addresses' ignoring
    tell_guest "$domid" 'done'
    end_guest "$name" 20
    check_nothing_mapped
}

make_initrd initrd /lab/scenarios/hostile-driver/guest.sh
serve b xen-virtiod
stop_daemon
start_daemon vm-memory-xen permissive
serve c 'grants or foreign mapping'
