# With a target that the daemon cannot serve, `xl create` fails at once. xl prints the reason if it
# checks the target itself; otherwise the daemon logs the reason.
# guests: pv
# limit: 60
. /lab/dom0/lib.sh

# refused TARGET WORDS: checks that xl create fails with these words.
refused() {
    ! XL_FLAGS=-vvv start_guest "$GUEST-missing-target" /lab/guest/initrd "$1" >xl-says 2>&1 ||
        fail "xl created a guest with the target $1"
    grep -qF "$2" xl-says || fail "xl does not say '$2': $(cat xl-says)"
    [ "$(xl list | wc -l)" = 2 ] || fail "xl create left a domain: $(xl list)"
}

refused /no/such/image 'failed to stat: /no/such/image: No such file or directory'
mkdir directory
refused "$PWD/directory" 'no suitable backend for disk xvda'

# A file that exists and cannot be opened for writing. The daemon removes the backend's state, so xl
# does not wait for its timeout of 10 s.
mkdir medium
truncate -s 1M medium/disk.img
mount --bind medium medium
mount -o remount,bind,ro medium
refused "$PWD/medium/disk.img" 'but it was removed'
umount medium
grep -qF "cannot open disk target \"$PWD/medium/disk.img\" for reading and writing" $daemon_log ||
    fail "the daemon's log does not say why: $(tail -n 3 $daemon_log)"

# The daemon still serves other guests.
truncate -s 1M disk.img
make_initrd initrd /lab/scenarios/missing-target/guest.sh
run_guest 40 "$GUEST-after-refusal" "$PWD/initrd" "$PWD/disk.img"
check_nothing_mapped
