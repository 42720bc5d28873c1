# A guest writes and verifies a raw disk and a qcow2 image, whose storage it gives back before it
# writes again, with fio (several jobs, requests of mixed sizes, fsync), and sends a TCP stream,
# while the process that serves it, the daemon, or both are killed at random moments. No write that
# was acknowledged is lost, nothing is corrupt, no task of the guest's hangs, the stream goes on,
# and afterwards Dom0 has as many grants, event channels, files and as much memory in use as before.
# guests: pv
# soak: pvh pv-bookworm
# limit: 1800
# needs: fio
. /lab/dom0/lib.sh
. /lab/dom0/under-load.sh

# A guest of the soak sees 100 kills.
KILLS=5
[ "$GUEST$KERNEL" = pv ] || KILLS=100

receive_streams
name=$GUEST-kill-under-load
make_disk disk.img 48
qemu-img create -q -f qcow2 disk.qcow2 48M
# Otherwise Xen emulates reads of the time stamp counter, as it does not know that the emulated
# processor's is invariant: a PVH guest then takes 100 s for a round.
start_loaded_guest "$name" "$PWD/disk.img $PWD/disk.qcow2:discard" \
    's|^memory = .*|&\ntsc_mode = "native"|'

# taken: prints how often devices were taken over.
taken() {
    grep -c 'taken over from an earlier process' $daemon_log || true
}

# random LIMIT: prints a number below the limit.
random() {
    echo $(($(od -An -N2 -tu2 /dev/urandom) % $1))
}

devices=4
before=$(daemon_uses)
resident=$(daemon_resident)
killed=0
while [ $killed -lt $KILLS ]; do
    count=$(taken)
    process=$(guest_process "$domid") || fail "the guest has no process"
    daemon=$(cat $daemon_pid)
    kind=$(random 3)
    case $kind in
    0) kill -9 "$process" ;;
    1) kill -9 "$daemon" ;;
    2) kill -9 "$process" "$daemon" ;;
    esac
    killed=$((killed + 1))
    if [ "$kind" != 0 ]; then
        timeout 20 tail --pid="$process" -s 0.1 -f /dev/null || fail "the guest's process did not end"
        start_daemon xen-virtiod
    fi
    wait_for "all devices to be taken over after $killed kills" 30 \
        "[ \$(taken) -ge $((count + devices)) ]" tail -n 1 -F $daemon_log
    # Five deaths within two seconds of the start of a process are a fault, so every third lives
    # longer.
    pause=$(random 1500)
    [ $((killed % 3)) != 0 ] || pause=$((pause + 2100))
    sleep "$((pause / 1000)).$(printf %03d $((pause % 1000)))"
done

sent=$(received "$domid")
rounds=$(tr -d '\r' <"$consoles/guest-$name.log" | sed -n 's/^lab: round //p' | tail -n 1)
wait_console "$name" 240 "lab: round $((rounds + 2))"
[ "$(received "$domid")" -gt $((sent + 1000000)) ] || fail "the guest sent $(($(received "$domid") - sent)) bytes in two rounds"
after=$(daemon_uses)
echo "$killed kills, the guest verified $((rounds + 2)) rounds; $after, $(daemon_resident) KiB resident; before: $before, $resident KiB"
[ "$after" = "$before" ] || fail "there were $before, and are $after"
[ "$(daemon_resident)" -lt $((resident + 4096)) ] || fail "the daemon's processes have $(daemon_resident) KiB, and had $resident"
tell_guest "$domid" stop
end_guest "$name" 120
check_nothing_mapped
# A kill may leave clusters that nothing uses: status 3.
qemu-img check -q disk.qcow2 || [ $? = 3 ] || fail "the image is damaged: $(qemu-img check disk.qcow2)"
! dmesg | grep -E 'BUG:|WARNING: CPU' || fail "Dom0's kernel warns"
[ -z "$(ls /run/xen-virtiod/records)" ] || fail "records are left: $(ls /run/xen-virtiod/records)"
