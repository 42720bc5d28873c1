# A target that cannot be served: xl fails at once, and it is said why: by xl itself where it looks
# at the target, by the daemon's log where xl finds nothing wrong.
# guests: pv
# limit: 60
. /lab/dom0/lib.sh

# refused TARGET WORDS: xl create must fail with these words.
refused() {
    ! XL_FLAGS=-vvv start_guest "$GUEST-missing-target" /lab/guest/initrd "$1" >xl-says 2>&1 ||
        fail "xl created a guest with the target $1"
    grep -qF "$2" xl-says || fail "xl does not say '$2': $(cat xl-says)"
    [ "$(xl list | wc -l)" = 2 ] || fail "something is left: $(xl list)"
}

refused /no/such/image 'failed to stat: /no/such/image: No such file or directory'
mkdir directory
refused "$PWD/directory" 'no suitable backend for disk xvda'

# A file that can be seen and not opened. The daemon takes the backend's state away, so xl does not
# wait for it until its patience (10 s) ends.
mkdir medium
truncate -s 1M medium/disk.img
mount --bind medium medium
mount -o remount,bind,ro medium
refused "$PWD/medium/disk.img" 'but it was removed'
umount medium
grep -qF "cannot open disk target \"$PWD/medium/disk.img\" for reading and writing" $daemon_log ||
    fail "the daemon's log does not say why: $(tail -n 3 $daemon_log)"

# The daemon is none the worse for it.
truncate -s 1M disk.img
make_initrd initrd /lab/scenarios/missing-target/guest.sh
run_guest 40 "$GUEST-after-refusal" "$PWD/initrd" "$PWD/disk.img"
check_nothing_mapped
