# Functions for the Dom0 script of a scenario, and for scripts of `cargo lab run`:
#     . /lab/dom0/lib.sh
# GUEST is the kind of guest to start: pv, pvh or hvm. KERNEL, if set, is the Debian release of its
# kernel. PATIENCE, if set, is a factor for all limits.

GUEST=${GUEST:-pv}
PATIENCE=${PATIENCE:-1}
guest_files=/lab/guest${KERNEL:+/$KERNEL}
consoles=/var/log/xen/console
daemon_log=/var/log/xen-virtiod.log
daemon_pid=/run/xen-virtiod.pid

# fail MESSAGE…: prints the reason and ends the script with status 1.
fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# wait_for WHAT LIMIT CHECK PROGRAM…: waits until the shell command CHECK succeeds. PROGRAM prints a
# line whenever something may have changed; wait_for then runs CHECK, with the line in $line. Fails
# after LIMIT seconds, with WHAT in the message.
wait_for() {
    local what=$1 limit=$(($2 * PATIENCE)) check=$3 fifo program met line
    shift 3
    fifo=$(mktemp -u)
    mkfifo "$fifo"
    timeout "$limit" "$@" >"$fifo" 2>/dev/null &
    program=$!
    met=no
    while read -r line; do
        if eval "$check"; then
            met=yes
            break
        fi
    done <"$fifo"
    kill $program 2>/dev/null || true
    wait $program 2>/dev/null || true
    rm "$fifo"
    [ $met = yes ] || fail "waited $limit s for $what"
}

# start_daemon PROGRAM…: starts xen-virtiod or another backend, and waits until its log says that it
# is ready. The daemon outlives the scenario.
start_daemon() {
    local logged
    touch $daemon_log
    logged=$(wc -c <$daemon_log)
    setsid "$@" >>$daemon_log 2>&1 </dev/null 9>&- &
    echo $! >$daemon_pid
    wait_for "$1 to say that it is ready" 20 \
        "case \"\$line\" in *' ready '*) ;; *) false ;; esac" tail -c "+$((logged + 1))" -F $daemon_log
}

# stop_daemon: stops the last daemon of start_daemon, and waits for its end.
stop_daemon() {
    local pid
    pid=$(cat $daemon_pid)
    kill "$pid" 2>/dev/null || true
    timeout 20 tail --pid="$pid" -s 0.1 -f /dev/null || fail "waited 20 s for process $pid to end"
}

# daemon_processes: prints the pids of the daemon and of the processes that serve guests.
daemon_processes() {
    local daemon
    daemon=$(cat $daemon_pid)
    echo "$daemon"
    cat "/proc/$daemon/task"/*/children 2>/dev/null | xargs -n 1
}

# daemon_threads: prints the directories in /proc of all of their threads.
daemon_threads() {
    local process
    for process in $(daemon_processes); do
        ls -d "/proc/$process/task"/*
    done
}

# daemon_resident: prints the sum of their resident memory in KiB.
daemon_resident() {
    local process
    for process in $(daemon_processes); do
        sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB$/\1/p' "/proc/$process/status"
    done | awk '{ sum += $1 } END { print sum }'
}

# daemon_uses: prints the event channels of the domain, and the open files of the daemon and of its
# processes.
daemon_uses() {
    local process files=0
    for process in $(daemon_processes); do
        files=$((files + $(ls "/proc/$process/fd" | wc -l)))
    done
    echo "$(grep -c 'evtchn:' /proc/interrupts) event channels, $files files"
}

# guest_process DOMID: prints the pid of the process that serves the guest.
guest_process() {
    local cmdline
    for cmdline in /proc/[0-9]*/cmdline; do
        case "$(tr '\0' ' ' <"$cmdline" 2>/dev/null)" in
        *"serve-guest $1 "*) basename "${cmdline%/cmdline}" && return ;;
        esac
    done
    false
}

# restore_daemon: starts xen-virtiod again, unless it runs, after a scenario that stopped it or
# started another backend.
restore_daemon() {
    if [ -d /run/systemd/system ]; then
        systemctl start xen-virtiod || fail "cannot start the unit xen-virtiod"
        return
    fi
    [ "$(cat "/proc/$(cat $daemon_pid)/comm" 2>/dev/null)" = xen-virtiod ] && return
    stop_daemon
    start_daemon xen-virtiod
}

# make_disk FILE MIB: makes a disk image of zeros.
make_disk() {
    truncate -s "$2M" "$1"
}

# make_initrd FILE SCRIPT [CPIO…]: makes a guest's initrd, with SCRIPT, which the guest's init runs,
# and with the contents of further archives.
make_initrd() {
    local initrd=$1 script=$2 staging
    shift 2
    staging=$(mktemp -d)
    cp "$script" "$staging/script"
    echo "$PATIENCE" >"$staging/patience"
    cat "$guest_files/initrd" "$@" >"$initrd"
    (cd "$staging" && printf 'script\npatience\n' | busybox cpio -o -H newc 2>/dev/null) >>"$initrd"
    rm -r "$staging"
}

# start_example EXAMPLE NAME INITRD SED…: starts a guest with xen-configs/EXAMPLE.cfg, after it has
# replaced name, kernel and initrd and applied each SED, a command of sed. The kernel is unpacked,
# unless QEMU loads it, which takes a bzImage alone. Sets $domid to the domain's number. XL_FLAGS
# are flags for xl itself, such as -vvv; CREATE_FLAGS are flags for xl create, such as -p.
start_example() {
    local example=/lab/xen-configs/$1.cfg guest=$2 initrd=$3 config=/run/$2.cfg edit
    local kernel=$guest_files/vmlinux
    shift 3
    sed -e "s|^name = .*|name = \"$guest\"|" -e "s|^ramdisk = .*|ramdisk = \"$initrd\"|" \
        -e "s|^kernel = .*|kernel = \"$kernel\"|" "$example" >"$config"
    for edit; do
        sed -i -e "$edit" "$config"
    done
    ! grep -q '^type = "hvm"' "$config" || sed -i "s|\"$kernel\"|\"${kernel%x}z\"|" "$config"
    # shellcheck disable=SC2086 # flags are words
    xl ${XL_FLAGS:-} create -q ${CREATE_FLAGS:-} "$config" || return 1
    domid=$(xl domid "$guest")
}

# disk_lines DISK…: prints the example configuration's disk line for each disk, an image file or
# block device. A suffix :r makes the disk read-only, :discard lets the guest discard, and :direct
# has the daemon use direct I/O.
disk_lines() {
    local letters=abcdefgh line letter access disk
    # QEMU emulates an HVM guest's first four disks too: see xen-configs/blk-hvm.cfg.
    [ "$GUEST" != hvm ] || letters=efgh
    line=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' "/lab/xen-configs/blk-$GUEST.cfg")
    for disk; do
        access=rw letter=${letters%"${letters#?}"} letters=${letters#?}
        case $disk in
        *:r) access=r disk=${disk%:r} ;;
        *:discard) access=rw,discard disk=${disk%:discard} ;;
        *:direct) access=rw,direct-io-safe disk=${disk%:direct} ;;
        esac
        printf '"%s", ' "$(echo "$line" | sed -e "s|vdev=xvd.|vdev=xvd$letter|" \
            -e "s|access=rw|access=$access|" -e "s|target=.*|target=$disk|")"
    done
}

# start_guest NAME INITRD DISK…: starts a guest with the example configuration of its kind and other
# disks, as disk_lines has them.
start_guest() {
    local guest=$1 initrd=$2
    shift 2
    start_example "blk-$GUEST" "$guest" "$initrd" "s|^disk = .*|disk = [$(disk_lines "$@")]|"
}

# wait_gone DOMID LIMIT: waits until the hypervisor has removed the domain. Xen keeps a domain as
# long as another domain has a page of it mapped.
wait_gone() {
    # With a look each second beside the event: on Arm one was lost twice.
    wait_for "domain $1 to be gone" "$2" "! xl list $1 >/dev/null 2>&1" \
        sh -c 'xenstore-watch @releaseDomain & while sleep 1; do echo; done'
}

# wait_console NAME LIMIT WORDS: waits until the guest prints a line that contains WORDS.
wait_console() {
    # grep, not CHECK, searches the log: a shell reads byte by byte, and a console's log is long.
    wait_for "the guest $1 to print '$3'" "$2" true sh -c \
        'tail -n +1 -F "$1" | grep --line-buffered -aF -e "$2"' sh "$consoles/guest-$1.log" "$3"
}

# run_guest LIMIT NAME INITRD DISK…: starts a guest like start_guest, and waits for its end like
# end_guest.
run_guest() {
    local limit=$1
    shift
    start_guest "$@" || fail "xl could not create the guest $1"
    end_guest "$1" "$limit"
}

# end_guest NAME LIMIT: waits until the guest's script has ended, and until the hypervisor has
# removed the domain $domid. Fails, and quotes the console, if the script's status is not 0.
end_guest() {
    wait_console "$1" "$2" 'lab: exit'
    tell_guest "$domid" 'the console is read'
    wait_gone "$domid" 60
    [ "$(guest_said "$1" exit)" = 0 ] || fail "the guest's script failed; its console:
$(tail -n 40 "$consoles/guest-$1.log" | tr -d '\r')"
}

# tell_guest DOMID LINE: writes a line to the guest's console.
tell_guest() {
    echo "$2" >"$(xenstore-read "/local/domain/$1/console/tty")"
}

# check_nothing_mapped [DOMID]: fails if the daemon has grants of any guest mapped, or if the
# hypervisor lists mapped grants of DOMID other than the toolstack's: the console (0) and XenStore
# (1).
check_nothing_mapped() {
    ! xen-virtiod stat --json | grep -o '"grants_mapped":[1-9][0-9]*' ||
        fail "xen-virtiod has grants mapped: $(xen-virtiod stat --json)"
    [ $# = 0 ] || [ -z "$(mapped_grants "$1")" ] ||
        fail "Xen has grants of domain $1 mapped: $(mapped_grants "$1")"
}

# mapped_grants DOMID: prints the mapped grants of a running domain, as Xen lists them, except those
# of the toolstack.
mapped_grants() {
    xl dmesg -c >/dev/null
    xl debug-keys g
    xl dmesg | sed -n "s/^(XEN) *//; /grant-table for remote d$1 /,/grant-table for remote/p" |
        grep -E '^\[0x[0-9a-f]+\]' | grep -vE '^\[0x0*[01]\]' || true
}

# machine_frame DOMID FRAME: prints the machine frame number of a PV guest's frame. Xen's tools read
# it from the guest's p2m, which is in the guest's own memory.
machine_frame() {
    local found
    found=$(xen-mfndump dump-p2m "$1" 2>&1 |
        sed -n "s/^ *pfn=0x$(printf %x "$2") ==> mfn=\(0x[0-9a-f]*\).*/\1/p")
    [ -n "$found" ] || fail "xen-mfndump does not list frame $2 of domain $1"
    printf '%d\n' "$found"
}

# mount_programs [SET]: mounts a set of programs in Dom0, the bench's or SET, for a scenario with
# `# needs: PROGRAM`. tool NAME ARGUMENT…: runs one of them.
mount_programs() {
    programs=/run/${1:-programs}
    mkdir -p "$programs"
    mountpoint -q "$programs" || mount -o loop,ro "/lab/files/${programs##*/}.img" "$programs"
}
tool() {
    local name=$1
    shift
    LD_LIBRARY_PATH=$programs/lib "$programs/bin/$name" "$@"
}

# opened_by FILE: prints the names of Dom0's programs that have the file open.
opened_by() {
    find /proc/[0-9]*/fd -lname "$1" 2>/dev/null | sed 's|/fd/.*|/comm|' | xargs -r cat | sort -u
}

# guest_said NAME KEY: prints VALUE of the guest's last line `lab: KEY VALUE`.
guest_said() {
    # Not by sed: the words may have any characters.
    tr -d '\r' <"$consoles/guest-$1.log" | grep -aF "lab: $2 " | tail -n 1 |
        while IFS= read -r line; do printf '%s\n' "${line#*"lab: $2 "}"; done
}

# result ROW HOST BACKEND WHERE GUEST DMA OUTCOME EVIDENCE: writes a result of the matrix (see
# `cargo lab matrix`). OUTCOME is the result in the words of the table in tests/matrix/README.md;
# EVIDENCE is the observation, which may differ from run to run.
result() {
    [ $# = 8 ] || fail "a result of the matrix has 8 parts, not $#: $*"
    (IFS='	' && echo "$*" | tr -d '\r') >>"$RESULTS/results"
}
