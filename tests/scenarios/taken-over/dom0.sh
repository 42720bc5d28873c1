# The process that serves a guest is killed, and the daemon killed and stopped, again and again
# while the guest writes and verifies its disks: one on a file, one on a disk that takes 20 ms for
# each request, with direct I/O, so that requests are in flight. Each time the next process takes
# the devices over. The guest sees neither an error nor wrong data, XenStore shows both sides
# connected all the time, and the daemon does what it owes. At last no daemon runs for longer than a
# response may take, while the guest's idle pools give pages back: the guest waits for the next one.
# guests:
# soak: pv pv-bookworm pvh pvh-sid hvm
# limit: 400
. /lab/dom0/lib.sh

PROCESS_KILLS=8
KILLS=8
STOPS=4

config=/sys/kernel/config
store=$config/nullb/taken
clean_up() {
    echo 0 >$store/power
    rmdir $store
}
trap 'clean_up >/dev/null 2>&1' EXIT

modprobe null_blk nr_devices=0
mountpoint -q $config || mount -t configfs configfs $config
mkdir $store
for setting in size=16 memory_backed=1 irqmode=2 completion_nsec=20000000 hw_queue_depth=64; do
    echo "${setting#*=}" >"$store/${setting%=*}"
done
echo 1 >$store/power
slow=/dev/taken

name=$GUEST-taken-over
make_disk disk.img 16
make_initrd initrd /lab/scenarios/taken-over/guest.sh
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" "$slow:direct" || fail "xl could not create the guest"
wait_console "$name" 60 'lab: round 1'

# Both disks, as the guest's kernel names them.
disks=$(xenstore-list "/local/domain/$domid/device/virtio_disk" | sed 's/^/virtio_disk-/')

# rounds: prints the number of rounds that the guest has verified.
rounds() {
    tr -d '\r' <"$consoles/guest-$name.log" | sed -n 's/^lab: round //p' | tail -n 1
}

# check_connected: fails unless XenStore shows both sides of each disk in state 4.
check_connected() {
    local number end numbers
    numbers=$(xenstore-list "/local/domain/0/backend/virtio_disk/$domid")
    [ "$(echo "$numbers" | wc -l)" = 2 ] || fail "the guest has other disks than two: $numbers"
    for number in $numbers; do
        for end in "/local/domain/0/backend/virtio_disk/$domid/$number" \
            "/local/domain/$domid/device/virtio_disk/$number"; do
            [ "$(xenstore-read "$end/state")" = 4 ] || fail "$end is not connected"
        done
    done
}

# next_daemon SIGNAL: ends the daemon, and starts another one, which serves a whole round.
next_daemon() {
    local daemon before
    daemon=$(cat $daemon_pid)
    kill "-$1" "$daemon"
    timeout 20 tail --pid="$daemon" -s 0.1 -f /dev/null || fail "the daemon did not end"
    check_connected
    before=$(rounds)
    start_daemon xen-virtiod
    wait_console "$name" 60 "lab: round $((before + 2))"
    check_connected
}

# next_process: kills the guest's process; the daemon starts another one, which serves two rounds.
next_process() {
    local process before
    process=$(guest_process "$domid") || fail "the guest has no process"
    before=$(rounds)
    kill -9 "$process"
    wait_console "$name" 60 "lab: round $((before + 2))"
    check_connected
    [ "$(guest_process "$domid")" != "$process" ] || fail "the process was not replaced"
}

taken=$(grep -c 'taken over from an earlier process' $daemon_log || true)
for _ in $(seq $PROCESS_KILLS); do
    next_process
done
for _ in $(seq $KILLS); do
    next_daemon KILL
done
for _ in $(seq $STOPS); do
    next_daemon TERM
done

# The pools give pages back 20 to 30 s after the last request. The daemon stays away until a message
# of each has had no answer for the time that a response may take.
tell_guest "$domid" rest
wait_console "$name" 60 'lab: idle'
stop_daemon
for disk in $disks; do
    wait_console "$name" 90 "$disk: waiting for the backend"
done
check_connected
start_daemon xen-virtiod
for disk in $disks; do
    wait_console "$name" 60 "$disk: the backend answers again"
done
check_connected

taken=$(($(grep -c 'taken over from an earlier process' $daemon_log || true) - taken))
[ "$taken" = $((2 * (PROCESS_KILLS + KILLS + STOPS + 1))) ] || fail "devices were taken over $taken times"
echo "8 processes and 13 daemons took over, the guest verified $(rounds) rounds"

tell_guest "$domid" stop
end_guest "$name" 60
for disk in vda:disk.img "vdb:$slow"; do
    sum=$(head -c 8M "${disk#*:}" | sha256sum | cut -d ' ' -f 1)
    [ "$(guest_said "$name" "sum-${disk%%:*}")" = "$sum" ] || fail "${disk#*:} is not what the guest read"
done
check_nothing_mapped
# A kernel that cannot cope with the end of a process while storage works for it says so here.
! dmesg | grep -E 'BUG:|WARNING: CPU' || fail "Dom0's kernel warns"
[ -z "$(ls /run/xen-virtiod/records)" ] || fail "records are left: $(ls /run/xen-virtiod/records)"
