# Writes to its disk, and boots the next kernel while it writes and reads: by kexec, then after a
# panic.
wait_for "four disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc -a -b /dev/vdd

# next NAME OPTION…: loads the next kernel, which reads its name in its options.
next() {
    name=$1
    shift
    program kexec "$@" --initrd=/tmp/initrd \
        --command-line="$(sed 's/ *lab\.kernel=[a-z]*//' /proc/cmdline) lab.kernel=$name" /tmp/kernel
}

kernel=$(sed -n 's/.*lab\.kernel=\([a-z]*\).*/\1/p' /proc/cmdline)
echo "lab: kernel ${kernel:=first}"
# The last kernel's data, which was written before the others began.
if [ "$(head -c 65536 /dev/vda | sha256sum)" = "$(printf '%065536d' 7 | sha256sum)" ]; then
    [ "$kernel" != first ] || { echo "lab: created anew" && exit 0; }
else
    [ "$kernel" = first ]
fi
if [ "$kernel" = third ]; then
    dd if=/dev/urandom of=/dev/vda bs=64k oflag=direct 2>/dev/null || true
    echo "lab: sum $(sha256sum </dev/vda)"
else
    printf '%065536d' 7 | dd of=/dev/vda bs=64k oflag=direct 2>/dev/null
    mount_programs /dev/vdb
    cat /dev/vdc >/tmp/kernel
    cat /dev/vdd >/tmp/initrd
    if [ "$(cat /sys/hypervisor/guest_type)" = PV ]; then
        if next second --load; then echo "lab: loaded yes"; else echo "lab: loaded no"; fi
        exit 0
    fi
    while :; do
        dd if=/dev/zero of=/dev/vda bs=64k seek=1 oflag=direct 2>/dev/null || true
    done &
    while :; do
        dd if=/dev/vdb of=/dev/null bs=1M iflag=direct 2>/dev/null || true
    done &
    if [ "$kernel" = first ]; then
        next second --load
        program kexec --exec
    else
        next third --load-panic
        echo 1 >/proc/sys/kernel/sysrq
        echo c >/proc/sysrq-trigger
    fi
    sleep 60
    false
fi
