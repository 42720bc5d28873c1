# The process of a guest is a user of its own without capabilities, in an empty directory, under a
# filter of system calls, and has less than 3 MiB of its own with two idle disks. Then a fault is
# planted: the backend `exploit` is xen-virtiod, but a guest's process tries to leave, by system
# calls and by its io_uring. Each attack is refused, or the kernel kills the process, but for one:
# Linux lets it map what another guest granted to this domain.
# guests: pv
# soak: pvh
# limit: 200
. /lab/dom0/lib.sh

MOST=3072
BASE=1879048192

# status PID KEY: prints a line of the process's status.
status() {
    sed -n "s/^$2:[[:space:]]*//p" "/proc/$1/status"
}

# check_confined DOMID: fails unless the process of the guest has no right that it does not need.
check_confined() {
    local pid user capabilities
    pid=$(guest_process "$1") || fail "the guest has no process"
    user=$((BASE + $1))
    for key in Uid Gid; do
        [ "$(status "$pid" $key)" = "$user	$user	$user	$user" ] || fail "$key: $(status "$pid" $key)"
    done
    [ -z "$(status "$pid" Groups | tr -d ' ')" ] || fail "it has groups: $(status "$pid" Groups)"
    for capabilities in CapInh CapPrm CapEff CapBnd CapAmb; do
        [ "$(status "$pid" $capabilities)" = 0000000000000000 ] ||
            fail "$capabilities is $(status "$pid" $capabilities)"
    done
    [ "$(status "$pid" NoNewPrivs)" = 1 ] || fail "it can gain privileges"
    [ "$(status "$pid" Seccomp)" = 2 ] || fail "it has no filter of system calls"
    [ "$(readlink "/proc/$pid/root")" = /run/xen-virtiod/empty ] ||
        fail "its root is $(readlink "/proc/$pid/root")"
    [ -z "$(ls -A "/proc/$pid/root/")" ] || fail "its root has $(ls -A "/proc/$pid/root/")"
    for descriptor in "/proc/$pid/fd"/*; do
        [ ! -d "$descriptor" ] || fail "it has a directory open: $(readlink "$descriptor")"
    done
}

# own_memory PID: prints the memory of the process that it shares with no other, in KiB.
own_memory() {
    awk '/^Private_(Clean|Dirty):/ { sum += $2 } END { print sum }' "/proc/$1/smaps_rollup"
}

# start NAME: starts a guest with two disks.
start() {
    make_disk "$1-a.img" 8
    make_disk "$1-b.img" 8
    start_guest "$1" "$PWD/initrd" "$PWD/$1-a.img" "$PWD/$1-b.img" || fail "xl could not create $1"
    wait_console "$1" 60 'lab: idle'
}

modprobe tun
make_initrd initrd /lab/scenarios/confined/guest.sh
start "$GUEST-victim"
victim=$domid
check_confined "$victim"
own=$(own_memory "$(guest_process "$victim")")
echo "the process has $own KiB of its own, with two idle disks"
[ "$own" -le $MOST ] || fail "the process has $own KiB of its own, more than $MOST"

frontend=/local/domain/$victim/device/virtio_disk
frontend=$frontend/$(xenstore-list "$frontend" | head -n 1)
export EXPLOIT_VICTIM="$victim" EXPLOIT_IMAGE="$PWD/$GUEST-victim-a.img"
EXPLOIT_REFERENCE=$(xenstore-read "$frontend/message-page-ref")
EXPLOIT_PORT=$(xenstore-read "$frontend/event-channel")
export EXPLOIT_REFERENCE EXPLOIT_PORT
stop_daemon
logged=$(wc -l <$daemon_log)
start_daemon exploit
start "$GUEST-attacker"
attacker=$domid
check_confined "$victim"
check_confined "$attacker"

tail -n "+$((logged + 1))" $daemon_log | sed -n 's/^exploit: //p' >attacks
cat attacks
grep -q '^tried 26 attacks$' attacks || fail "not all attacks were made"
! grep -E 'not tried|failed' attacks || fail "an attack was not made"
[ "$(grep -c ': succeeded$' attacks)" = 1 ] || fail "attacks succeeded: $(grep succeeded attacks)"
# Linux restricts no handle of gntdev to a domain: .github/SECURITY.md.
grep -q "^map the victim's grant: succeeded$" attacks || fail "Linux refuses another guest's grants now"
[ -e "$EXPLOIT_IMAGE" ] || fail "the victim's image was removed"

for name in "$GUEST-victim" "$GUEST-attacker"; do
    domid=$(xl domid "$name")
    tell_guest "$domid" go
    end_guest "$name" 60
done
check_nothing_mapped
restore_daemon
