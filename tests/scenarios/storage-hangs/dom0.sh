# Storage that stops to answer: the guest's other disk goes on, the end of a driver and the start
# of the next one wait for storage, `xl destroy` does not. `xen-virtiod stat` shows the disk, whose
# image no other guest gets, until storage answers again.
# guests: pv
# soak: pvh
# limit: 120
# needs: dmsetup
. /lab/dom0/lib.sh

mount_programs
modprobe -a brd dm-mod
clean_up() {
    tool dmsetup resume hangs
    tool dmsetup remove --retry hangs
    rmmod brd
}
trap 'clean_up >/dev/null 2>&1' EXIT
modprobe -r brd
modprobe brd rd_nr=1 rd_size=8192
tool dmsetup create --noudevsync --noudevrules hangs --table '0 16384 linear /dev/ram0 0'
store=/dev/$(tool dmsetup info -c --noheadings -o blkdevname hangs)
make_disk "$PWD/sound.img" 8
name=$GUEST-storage-hangs

# shown WORDS: whether stat prints a line that matches.
shown() {
    xen-virtiod stat | grep "$1" >/dev/null
}

# wait_shown WORDS: waits for such a line.
wait_shown() {
    wait_for "stat to print '$1'" 20 "shown '$1'" sh -c 'while echo; do sleep 0.2; done'
}

# stop_storage: has storage answer nothing. wait_stuck: waits until a request of the guest's is
# stuck in it.
stop_storage() {
    tool dmsetup suspend --noflush hangs
}
wait_stuck() {
    wait_shown "storage .* in flight, the oldest for [1-9].* s, image \"$store\"\$"
}

# check_other_disk: waits until the guest has written its other disk 20 times.
check_other_disk() {
    wait_console "$name" 20 "lab: sound $(($(guest_said "$name" sound) + 20))"
}

make_initrd initrd /lab/scenarios/storage-hangs/guest.sh
start_guest "$name" "$PWD/initrd" "$PWD/sound.img" "$store:direct" ||
    fail "xl could not create the guest"
wait_console "$name" 40 'lab: before 3'
wait_console "$name" 20 'lab: sound 3'
stop_storage
wait_stuck
check_other_disk

# The guest gives up the disk's driver, which waits for the driver's requests.
tell_guest "$domid" unbind
wait_console "$name" 20 'lab: unbinding'
check_other_disk
! grep -a 'lab: unbound' "$consoles/guest-$name.log" || fail "the driver is gone, and its requests are not"
tool dmsetup resume hangs
wait_console "$name" 20 'lab: unbound'

# A driver in a process, which is killed. The next one starts when storage answers.
stop_storage
tell_guest "$domid" drive
wait_stuck
tell_guest "$domid" kill
wait_shown "waiting for storage: .* in flight, the oldest for .* s, image \"$store\" locked\$"
tool dmsetup resume hangs
wait_console "$name" 30 'lab: drove'
[ "$(guest_said "$name" drove)" = "$(sha256sum <"$store")" ] ||
    fail "the next driver read $(guest_said "$name" drove), the disk has $(sha256sum <"$store")"
! shown 'waiting for storage' || fail "stat shows: $(xen-virtiod stat)"

# The toolstack ends the guest while storage hangs.
tell_guest "$domid" bind
wait_console "$name" 20 'lab: after 3'
stop_storage
wait_stuck
logged=$(wc -c <$daemon_log)
xl destroy "$domid" 2>xl-says || fail "xl destroy: $(cat xl-says)"
! grep -E 'timed out|rror' xl-says || fail "xl destroy printed an error"
wait_shown "waiting for storage: .* in flight, the oldest for .* s, image \"$store\" locked\$"
[ "$(xen-virtiod stat | grep -c 'waiting for storage')" = 1 ] ||
    fail "stat shows: $(xen-virtiod stat)"
xen-virtiod stat | grep -B 20 'waiting for storage' | grep "^domain $domid virtio_disk/51728" ||
    fail "stat does not show the disk of domain $domid: $(xen-virtiod stat)"
tail -c "+$((logged + 1))" $daemon_log >said
[ "$(grep -c "storage does not answer.* image \"$store\" locked" said)" = 1 ] ||
    fail "the log does not have one line: $(cat said)"
owner=$domid
! start_guest refused /lab/guest/initrd "$store" 2>xl-says || fail "xl created a second guest"
grep -qF "domain $owner uses it for xvdb" $daemon_log ||
    fail "the log does not say why it refused: $(tail -n 3 $daemon_log)"
shown 'waiting for storage' || fail "stat shows: $(xen-virtiod stat)"
[ "$(grep -c 'storage does not answer' said)" = 1 ]

tool dmsetup resume hangs
wait_gone "$owner" 20
wait_for "stat to show no disk that waits" 20 "! shown 'waiting for storage'" \
    sh -c 'while echo; do sleep 0.2; done'
check_nothing_mapped
make_initrd reading /lab/scenarios/storage-hangs/next-guest.sh
run_guest 40 "$GUEST-next" "$PWD/reading" "$store"
[ "$(guest_said "$GUEST-next" disk)" = "$(sha256sum <"$store")" ] ||
    fail "the next guest read data that the disk does not hold"
check_nothing_mapped
