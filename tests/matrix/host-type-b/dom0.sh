# A host of type (b), which never bypasses the platform's mechanism: xen-virtiod in Dom0 and in an
# unprivileged driver domain, with one guest that has a disk from each. Data through grants is right
# (row 1). The backend refuses a driver that gives guest-physical addresses (row 2) or does not
# accept ACCESS_PLATFORM (row 3), and serves the next guest.
# guests: pv pvh hvm
# limit: 600
. /lab/dom0/lib.sh

name=$GUEST-type-b
kind=$(echo "$GUEST" | tr '[:lower:]' '[:upper:]')

# PLACE is the domain of a disk's backend: 1 for Dom0, 2 for the driver domain.

# look MOMENT: writes the checksums of both disks to the files MOMENT-PLACE.
look() {
    sha256sum <disk.img >"$1-1"
    tell_guest "$backend" "$1"
    wait_console driver-domain 20 "lab: $1-told"
    guest_said driver-domain "$1-image" >"$1-2"
}

# short [FILE]: prints the first digits of a checksum.
short() {
    head -c 8 "$@"
}

# logged PLACE WORDS: prints the last line of the backend's log that matches WORDS, from the match.
logged() {
    case $1 in
    1) tail -c "+$((logged_before + 1))" $daemon_log ;;
    2) tr -d '\r' <"$consoles/guest-driver-domain.log" ;;
    esac | sed -n "s/^.*\($2\)/\1/p" | tail -n 1
}

# counted PLACE: prints the backend's counters of addresses.
counted() {
    case $1 in
    1) xen-virtiod stat | sed -n "/^domain $domid /,/^domain/s/^  addresses  //p" ;;
    2) guest_said driver-domain data-addresses ;;
    esac
}

# opened PLACE: prints the files of /dev/xen that the backend has open.
opened() {
    case $1 in
    1)
        for process in $(daemon_processes); do
            find "/proc/$process/fd" -lname '/dev/xen/*' -printf '%l\n'
        done | sed 's|.*/||' | sort -u | xargs
        ;;
    2) guest_said driver-domain data-opened ;;
    esac
}

# data PLACE WHERE: writes a result of row 1.
data() {
    local outcome='works, data right'
    guest_said "$name" "found-$1" >found
    guest_said "$name" "written-$1" >written
    guest_said "$name" "read-$1" >./read
    busybox cmp -s found "first-$1" || outcome='works, data read is wrong'
    busybox cmp -s read written || outcome='works, data read back is wrong'
    busybox cmp -s written "data-$1" || outcome='works, data written is wrong'
    result 1 b xen-virtiod "$2" "$kind" grants "$outcome" \
        "1 MiB read: sha256 $(short found) in the guest, $(short "first-$1") there; 1 MiB written: \
$(short written), read back $(short read), $(short "data-$1") there; addresses $(counted "$1"); of /dev/xen \
xen-virtiod has opened $(opened "$1")"
}

# platform PLACE WHERE: writes a result of row 3.
platform() {
    local said outcome='not refused'
    said=$(guest_said "$name" "platform-$1")
    case $said in
    *'refuses features'*) outcome='FEATURES_OK not set' ;;
    esac
    [ -z "$(guest_said "$name" "platform-disk-$1")" ] || outcome="$outcome, there is a disk"
    result 3 b xen-virtiod "$2" "$kind" 'no ACCESS_PLATFORM' "$outcome" \
        "guest: $said; xen-virtiod: $(logged "$1" 'FEATURES_OK refused')"
}

# raw PLACE WHERE: writes a result of row 2.
raw() {
    local said outcome='not refused' disk=unchanged
    said=$(guest_said "$name" "raw-$1")
    case $said in
    *DEVICE_NEEDS_RESET*) outcome='refused, DEVICE_NEEDS_RESET' ;;
    esac
    if ! busybox cmp -s "data-$1" "raw-$1"; then
        disk=changed outcome="$outcome, the disk changed"
    fi
    guest_said "$next" "found-$1" >found
    if busybox cmp -s found "raw-$1"; then
        outcome="$outcome, next guest served"
    else
        outcome="$outcome, next guest not served"
    fi
    result 2 b xen-virtiod "$2" "$kind" 'raw addresses' "$outcome" \
        "guest: $said; xen-virtiod: $(logged "$1" 'needs reset: .*is not a grant'); \
disk $disk; next guest read $(short found)"
}

# start NAME INITRD: starts a guest with both disks.
start() {
    local own served letters='a b'
    # QEMU emulates an HVM guest's first four disks too: see xen-configs/blk-hvm.cfg.
    [ "$GUEST" != hvm ] || letters='e f'
    own=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' /lab/xen-configs/blk-pv.cfg |
        sed "s|vdev=xvda|vdev=xvd${letters% *}|; s|target=.*|target=$PWD/disk.img|")
    served=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' /lab/xen-configs/blk-driver-domain.cfg |
        sed "s|vdev=xvda|vdev=xvd${letters#* }|")
    start_example "blk-$GUEST" "$1" "$2" "s|^disk = .*|disk = [\"$own\", \"$served\"]|" ||
        fail "xl could not create the guest $1"
}

logged_before=$(wc -c <$daemon_log)
dd if=/dev/urandom of=disk.img bs=64k count=16 2>/dev/null
make_initrd backend-initrd /lab/scenarios/host-type-b/backend.sh /lab/guest/driver-domain.cpio
make_initrd initrd /lab/scenarios/host-type-b/guest.sh
make_initrd next-initrd /lab/scenarios/host-type-b/next.sh
start_example driver-domain driver-domain "$PWD/backend-initrd" ||
    fail "xl could not create the driver domain"
backend=$domid
# On Dom0's processor: a processor with emulated SVM must not switch between a PVH or HVM guest and
# another domain.
xl vcpu-pin -i driver-domain 0 0
wait_console driver-domain 40 'lab: serving'
look first

start "$name" "$PWD/initrd"
wait_console "$name" 120 'lab: data-done'
look data
data 1 Dom0
data 2 'driver domain'

tell_guest "$domid" platform
wait_console "$name" 120 'lab: platform-done'
platform 1 Dom0
platform 2 'driver domain'

tell_guest "$domid" raw
wait_console "$name" 120 'lab: raw-done'
look raw
# The devices never complete the kernel's requests, so the guest cannot power off.
xl destroy "$domid"
wait_gone "$domid" 20
next=$GUEST-type-b-next
start "$next" "$PWD/next-initrd"
wait_console "$next" 120 'lab: exit'
raw 1 Dom0
raw 2 'driver domain'
tell_guest "$domid" 'the console is read'
wait_gone "$domid" 20
check_nothing_mapped
xl destroy "$backend"
wait_gone "$backend" 20
