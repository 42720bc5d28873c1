# A Dom0 boots systemd with the units of Debian's Xen, and xen-virtiod installed from its package
# (in dom0/systemd-job). The scenario checks the unit and its sandbox, a device of each kind, the
# journal, a crash, a restart, a stop, an upgrade of the package, and an invalid configuration.
# guests: pv
# machine: systemd
# limit: 240
. /lab/dom0/lib.sh

settings=/etc/xen-virtiod.toml
unit=xen-virtiod.service
server='' listener='' loop=''

clean_up() {
    kill $server $listener 2>/dev/null || true
    rm -f $settings /root/home.img
    [ -z "$loop" ] || losetup -d "$loop"
    ip link delete xenbr0
}

# property NAME: prints a property of the unit.
property() {
    systemctl show --property="$1" --value $unit
}

# holds NAME VALUE: checks that the property has this value.
holds() {
    [ "$(property "$1")" = "$2" ] || fail "$1 of the unit is $(property "$1"), not $2"
}

# orders AFTER BEFORE…: checks that systemd starts the first unit after the others, and that all of
# them exist.
orders() {
    local after=$1 before all
    [ "$(systemctl show --property=LoadState --value "$@" | sort -u | xargs)" = loaded ] ||
        fail "not all of these units exist: $*"
    all=$(systemctl show --property=After --value "$after")
    shift
    for before; do
        case " $all " in
        *" $before "*) ;;
        *) fail "the unit $after is not ordered after $before" ;;
        esac
    done
}

# process FILE: prints a file of the daemon's process, $pid, in /proc.
process() {
    cat "/proc/$pid/$1"
}

# has_status NAME VALUE: checks a line in the status of the daemon's process.
has_status() {
    process status | grep -q "^$1:[[:space:]]*$2\$" ||
        fail "the process has $(process status | grep "^$1:"), not $2"
}

# opens PATH: checks whether a process in the unit's control group, $group, can open the device.
opens() {
    [ -e "$1" ] || fail "there is no $1"
    (echo 0 >"$group/cgroup.procs" && exec 3<>"$1") 2>opening
}

# writes PATH: checks whether a process in the daemon's mount namespace can write there.
writes() {
    nsenter --target "$pid" --mount sh -c "touch '$1' && rm '$1'" 2>writing
}

# journal PRIORITY: prints the daemon's lines of this and higher priorities.
journal() {
    journalctl --unit=$unit --boot --no-pager --output=cat --priority="$1"
}

# listen PORT FROM TO: starts a program that serves the vsock port: it sends the file FROM, and
# writes received data to the file TO. Sets $listener to its process.
listen() {
    socat -t 40 "UNIX-LISTEN:${socket}_$1" - <"$2" >"$3" &
    listener=$!
    wait_for "the socket ${socket}_$1" 10 "[ -S '${socket}_$1' ]" sh -c 'while echo; do sleep 0.1; done'
}

# start NAME DISK…: starts a guest with a device of each kind, and one of an unsupported kind.
start() {
    local name=$1 disk letters=abc disks='' letter
    shift
    for disk; do
        letter=${letters%"${letters#?}"} letters=${letters#?}
        disks="$disks\"format=raw,vdev=xvd$letter,access=rw,backendtype=standalone,specification=virtio,target=$disk\", "
    done
    start_example devices-pv "$name" "$PWD/initrd" \
        "s|^virtio = \[|disk = [$disks]\n&\"type=virtio,device1,grant_usage=1\",|" \
        's|^ *"type=virtio,device13,.*|&"type=virtio,device99,grant_usage=1",|' ||
        fail "xl could not create the guest $name"
}

# said_by_guest NAME KEY FILE: checks that the guest printed the file's checksum.
said_by_guest() {
    [ "$(guest_said "$1" "$2")" = "$(sha256sum <"$3")" ] ||
        fail "the checksum $2 of the guest $1 is not that of $3"
}

trap clean_up EXIT

# A guest, which boots while the script checks the unit. Its disks are an image in this directory,
# one in root's home, and a block device; its network interface is a port of a bridge.
truncate -s 4M disk.img /root/home.img looped.img
chmod 600 /root/home.img
loop=$(losetup --find --show looped.img)
ip link add xenbr0 type bridge
ip address add 10.9.2.1/24 dev xenbr0
ip link set xenbr0 up
mkdir www
head -c 1M /dev/urandom >www/noise
busybox httpd -f -p 10.9.2.1:80 -h www &
server=$!
make_initrd initrd /lab/scenarios/systemd/guest.sh
start systemd "$PWD/disk.img" /root/home.img "$loop"
guest=$domid

# The doctor finds one error in this Dom0, which serves a guest: the unsupported device.
! xen-virtiod doctor >doctor || fail "the doctor finds no error"
cat doctor
[ "$(grep -c '^error' doctor)" = 1 ] && grep -q '^error *devices: virtio/4 of systemd is not served' doctor ||
    fail "the doctor does not find the unsupported device alone"

# The unit.
holds ActiveState active
holds UnitFileState enabled
holds NRestarts 0
orders $unit xen.service modprobe@xen_gntdev.service modprobe@xen_evtchn.service
orders xendomains.service $unit
! systemd-analyze verify --man=no $unit 2>&1 | grep -F xen-virtiod ||
    fail "systemd finds fault with the unit"
# The threshold is in tenths: 2.8 with Debian 12's systemd. Of that, 0.7 are what confines the
# processes of guests: SETUID, SETGID, SETPCAP, SYS_CHROOT and KILL, and the system calls for it.
systemd-analyze security --no-pager --threshold=28 $unit >exposure || fail "$(tail -n 1 exposure)"
tail -n 1 exposure
[ "$(command -v xen-virtiod)" = /usr/sbin/xen-virtiod ] ||
    fail "xen-virtiod is $(command -v xen-virtiod)"

# Its process.
pid=$(property MainPID)
group=/sys/fs/cgroup$(property ControlGroup)
process limits | grep -qE '^Max open files +524288 +524288 ' ||
    fail "$(process limits | grep files)"
[ "$(process oom_score_adj)" = -900 ] || fail "oom_score_adj is $(process oom_score_adj)"
has_status Umask 0077
has_status NoNewPrivs 1
has_status Seccomp 2
# NET_ADMIN, DAC_OVERRIDE; for the processes of guests SYS_CHROOT, SETUID, SETGID, SETPCAP, KILL.
has_status CapBnd 00000000000411e2
for device in /dev/xen/gntdev /dev/xen/evtchn /dev/xen/xenbus /dev/net/tun /dev/vda; do
    opens $device || fail "the sandbox keeps the daemon from $device: $(cat opening)"
done
for device in /dev/xen/privcmd /dev/mem /dev/hvc0; do
    ! opens $device || fail "the sandbox lets the daemon open $device"
    grep -q 'Operation not permitted' opening ||
        fail "opening $device fails with another error: $(cat opening)"
done
for path in /usr/sbin/x /etc/x; do
    ! writes $path || fail "the sandbox lets the daemon write to $path"
done
for path in /root/x /var/lib/x /srv/x /run/xen-virtiod/x /run/x "$PWD/x"; do
    writes $path || fail "the sandbox keeps the daemon from $path: $(cat writing)"
done

# Each device.
wait_console systemd 60 'lab: fetched'
said_by_guest systemd fetched www/noise
socket=$(xenstore-read "backend/virtio/$guest/3/socket")
socket_inode=$(stat -c %i "$socket")
head -c 1M /dev/urandom >down
listen 2000 down up
wait_console systemd 40 'lab: console'
tty=$(xenstore-read "backend/virtio/$guest/2/tty")
head -c 4096 /dev/urandom >typed
cat typed >"$tty" &
timeout 40 head -c 4096 <"$tty" >printed ||
    fail "the console returned $(wc -c <printed) bytes of 4096"
busybox cmp typed printed || fail "the console changed the data"
wait_console systemd 60 'lab: used'
wait $listener
said_by_guest systemd up up
said_by_guest systemd down down
head -c 1M /root/home.img >home
dd if="$loop" of=looped bs=1M count=1 iflag=direct 2>/dev/null
said_by_guest systemd vdb home
said_by_guest systemd vdc looped

# The journal: each line has its priority, and names the guest and the device.
refusal='virtio device type "virtio,device99" is not supported'
journal err | grep -F "$refusal" | grep -F "guest=$guest" >/dev/null ||
    fail "no error reports the refused device of domain $guest: $(journal err)"
! journal warning | grep -w ready || fail "the daemon reports that it is ready as a warning"
journal info | grep -w ready >/dev/null || fail "the journal does not say that the daemon is ready"
! journal debug | grep '^<[0-7]>' || fail "the journal has priorities in its text"

# The configuration, read again.
systemctl reload $unit
wait_for "the daemon to reload its configuration" 10 \
    "journal info | grep -q 'configuration reloaded: no change'" sh -c 'while echo; do sleep 0.1; done'

# A crash: systemd starts the daemon again, which takes all devices over.
kill -9 "$(property MainPID)"
wait_for "the next daemon to take seven devices over" 30 \
    "[ \"\$(journal info | grep -c 'taken over from an earlier process')\" = 7 ]" \
    sh -c 'while echo; do sleep 0.1; done'
holds ActiveState active
holds NRestarts 1
# The console's terminal and the socket of vsock are those that programs have open.
kept() {
    [ "$(xenstore-read "backend/virtio/$guest/2/tty")" = "$tty" ] ||
        fail "the console has another terminal than $tty: $(xenstore-read "backend/virtio/$guest/2/tty")"
    [ "$(stat -c %i "$socket")" = "$socket_inode" ] || fail "$socket is another socket"
}
kept
systemctl stop $unit
systemctl start $unit
wait_for "the next daemon to take seven devices over" 30 \
    "[ \"\$(journal info | grep -c 'taken over from an earlier process')\" = 14 ]" \
    sh -c 'while echo; do sleep 0.1; done'
kept
xl destroy "$guest"
wait_gone "$guest" 20
[ ! -e "$socket" ] || fail "$socket is left of a guest that is gone"
[ "$(property NFileDescriptorStore)" = 0 ] ||
    fail "systemd keeps $(property NFileDescriptorStore) descriptors of a guest that is gone"

# A restart, and a stop and a start, during a guest's writes: the guest goes on, and other programs'
# sockets beside the daemon's stay. While the unit is stopped, no grant is mapped.
listen 3000 /dev/null /dev/null
make_initrd writing-initrd /lab/scenarios/driver-domain/writing.sh
start_guest writing "$PWD/writing-initrd" "$PWD/disk.img" ||
    fail "xl could not create the guest writing"
guest=$domid
wait_console writing 40 'lab: writing 2'
systemctl restart $unit
holds NRestarts 0
[ -S "${socket}_3000" ] || fail "the restart removed another program's socket"
wait_console writing 20 "lab: writing $(($(guest_said writing writing) + 2))"
systemctl stop $unit
holds Result success
holds ExecMainStatus 0
[ -z "$(mapped_grants "$guest")" ] ||
    fail "grants of domain $guest are mapped: $(mapped_grants "$guest")"
systemctl start $unit
wait_console writing 20 "lab: writing $(($(guest_said writing writing) + 2))"

# An upgrade of the package: other processes serve the guest, which goes on.
dpkg-deb --raw-extract /lab/packages/xen-virtiod_*.deb next
sed -i 's/^Version: .*/&+next/' next/DEBIAN/control
dpkg-deb -Znone --build next next.deb >/dev/null
processes=$(pidof xen-virtiod)
dpkg --force-depends -i next.deb
holds ActiveState active
holds NRestarts 0
for process in $processes; do
    [ ! -e "/proc/$process" ] || fail "process $process of the earlier version still runs"
done
wait_console writing 20 "lab: writing $(($(guest_said writing writing) + 2))"

# An end: the guest loses its disk.
xen-virtiod end >ended
grep -q "domain $guest virtio_disk/51712: ended (blk)" ended || fail "end prints $(cat ended)"
wait_console writing 20 'device given up: the backend left'
xl destroy "$guest"
wait_gone "$guest" 20
wait_for "the unit to be inactive" 10 "[ \"\$(property ActiveState)\" = inactive ]" \
    sh -c 'while echo; do sleep 0.1; done'

# An invalid configuration: the start fails, the error names the line, and systemd does not retry.
echo '[default.net]
bridge = 5' >$settings
! systemctl start $unit || fail "the daemon starts with an invalid configuration"
holds ActiveState failed
holds ExecMainStatus 78
journal err | grep -F "$settings:2: default.net.bridge" >/dev/null ||
    fail "no error names the line of the configuration: $(journal err)"
rm $settings
systemctl start $unit
holds NRestarts 0
check_nothing_mapped
