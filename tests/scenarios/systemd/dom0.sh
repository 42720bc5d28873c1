# A Dom0 that boots systemd with the units of Debian's Xen, and xen-virtiod installed there as
# README says (dom0/systemd-job did it): what the unit is worth, a device of each kind under its
# sandbox, what the journal says, a crash, a restart, a stop, and a configuration that is wrong.
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

# property NAME: what systemd says of the unit.
property() {
    systemctl show --property="$1" --value $unit
}

# holds NAME VALUE: the property has this value.
holds() {
    [ "$(property "$1")" = "$2" ] || fail "$1 of the unit is $(property "$1"), not $2"
}

# orders AFTER BEFORE…: systemd starts the first unit after the others, and all of them exist.
orders() {
    local after=$1 before all
    [ "$(systemctl show --property=LoadState --value "$@" | sort -u | xargs)" = loaded ] || fail "not all are there: $*"
    all=$(systemctl show --property=After --value "$after")
    shift
    for before; do
        case " $all " in
        *" $before "*) ;;
        *) fail "$after does not wait for $before" ;;
        esac
    done
}

# process FILE: a file of the daemon's in /proc; $pid is its process.
process() {
    cat "/proc/$pid/$1"
}

# has_status NAME VALUE: the daemon's process has it.
has_status() {
    process status | grep -q "^$1:[[:space:]]*$2\$" || fail "the process has $(process status | grep "^$1:"), not $2"
}

# opens PATH: whether a program among the unit's processes, which are in $group, could open the
# device.
opens() {
    [ -e "$1" ] || fail "there is no $1"
    (echo 0 >"$group/cgroup.procs" && exec 3<>"$1") 2>opening
}

# writes PATH: whether the daemon could write there.
writes() {
    nsenter --target "$pid" --mount sh -c "touch '$1' && rm '$1'" 2>writing
}

# journal PRIORITY: the daemon's lines of this priority and of graver ones.
journal() {
    journalctl --unit=$unit --boot --no-pager --output=cat --priority="$1"
}

# listen PORT FROM TO: starts a program that the guest reaches at the vsock port: it sends a file
# and writes what comes to another. Its process is $listener.
listen() {
    socat -t 40 "UNIX-LISTEN:${socket}_$1" - <"$2" >"$3" &
    listener=$!
    wait_for "the socket ${socket}_$1" 10 "[ -S '${socket}_$1' ]" sh -c 'while echo; do sleep 0.1; done'
}

# start NAME DISK…: starts a guest with a device of each kind, and one of a kind that there is not.
start() {
    local name=$1 disk letters=abc disks='' letter
    shift
    for disk; do
        letter=${letters%"${letters#?}"} letters=${letters#?}
        disks="$disks\"format=raw,vdev=xvd$letter,access=rw,backendtype=standalone,specification=virtio,target=$disk\", "
    done
    start_example devices-pv "$name" "$PWD/initrd" \
        "s|^virtio = \[|disk = [$disks]\n&\"type=virtio,device1,transport=mmio,grant_usage=1\",|" \
        's|^ *"type=virtio,device13,.*|&"type=virtio,device99,transport=mmio,grant_usage=1",|' ||
        fail "xl could not create the guest $name"
}

# said_by_guest NAME KEY FILE: the guest's check sum is the file's.
said_by_guest() {
    [ "$(guest_said "$1" "$2")" = "$(sha256sum <"$3")" ] || fail "$2 of the guest $1 is not what $3 has"
}

trap clean_up EXIT

# A guest, which boots while the unit is looked at. Its disks are an image here, one in root's home
# and a block device; its network interface is at a bridge.
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

# The unit.
holds ActiveState active
holds UnitFileState enabled
holds NRestarts 0
orders $unit xen.service modprobe@xen_gntdev.service modprobe@xen_evtchn.service
orders xendomains.service $unit
! systemd-analyze verify --man=no $unit 2>&1 | grep -F xen-virtiod || fail "systemd finds fault with the unit"
# In tenths: 2.1 by systemd 257, and 2.3 by Debian 12's.
systemd-analyze security --no-pager --threshold=25 $unit >exposure || fail "$(tail -n 1 exposure)"
tail -n 1 exposure
[ "$(command -v xen-virtiod)" = /usr/local/sbin/xen-virtiod ] || fail "xen-virtiod is $(command -v xen-virtiod)"

# Its process.
pid=$(property MainPID)
group=/sys/fs/cgroup$(property ControlGroup)
process limits | grep -qE '^Max open files +524288 +524288 ' || fail "$(process limits | grep files)"
[ "$(process oom_score_adj)" = -900 ] || fail "oom_score_adj is $(process oom_score_adj)"
has_status Umask 0077
has_status NoNewPrivs 1
has_status Seccomp 2
has_status CapBnd 0000000000001002 # CAP_NET_ADMIN, CAP_DAC_OVERRIDE
for device in /dev/xen/gntdev /dev/xen/evtchn /dev/xen/xenbus /dev/net/tun /dev/vda; do
    opens $device || fail "the sandbox keeps the daemon from $device: $(cat opening)"
done
for device in /dev/xen/privcmd /dev/mem /dev/hvc0; do
    ! opens $device || fail "the sandbox lets the daemon open $device"
    grep -q 'Operation not permitted' opening || fail "$device is not refused: $(cat opening)"
done
for place in /usr/local/sbin/x /etc/x; do
    ! writes $place || fail "the sandbox lets the daemon write to $place"
done
for place in /root/x /var/lib/x /srv/x /run/xen-virtiod/x /run/x "$PWD/x"; do
    writes $place || fail "the sandbox keeps the daemon from $place: $(cat writing)"
done

# Each device.
wait_console systemd 60 'lab: fetched'
said_by_guest systemd fetched www/noise
socket=$(xenstore-read "backend/virtio/$guest/3/socket")
head -c 1M /dev/urandom >down
listen 2000 down up
wait_console systemd 40 'lab: console'
tty=$(xenstore-read "backend/virtio/$guest/2/tty")
head -c 4096 /dev/urandom >typed
cat typed >"$tty" &
timeout 40 head -c 4096 <"$tty" >printed || fail "the console gave $(wc -c <printed) bytes of 4096"
busybox cmp typed printed || fail "the console changed what was typed"
wait_console systemd 60 'lab: used'
wait $listener
said_by_guest systemd up up
said_by_guest systemd down down
head -c 1M /root/home.img >home
dd if="$loop" of=looped bs=1M count=1 iflag=direct 2>/dev/null
said_by_guest systemd vdb home
said_by_guest systemd vdc looped

# The journal: each line has its priority, and names guest and device.
refusal='virtio device type "virtio,device99" is not supported'
journal err | grep -F "$refusal" | grep -F "guest=$guest" >/dev/null ||
    fail "no error says of domain $guest that a device is refused: $(journal err)"
! journal warning | grep -w ready || fail "that the daemon is ready is a warning"
journal info | grep -w ready >/dev/null || fail "the journal does not say that the daemon is ready"
! journal debug | grep '^<[0-7]>' || fail "the journal has priorities in its text"

# A crash: systemd starts it again, and it warns of the devices that it finds.
logged=$(wc -c <$daemon_log)
kill -9 "$(property MainPID)"
wait_for "the next daemon's warning" 30 "case \$line in *'device of an earlier daemon closed'*) ;; *) false ;; esac" \
    tail -c "+$((logged + 1))" -F $daemon_log
holds ActiveState active
holds NRestarts 1
wait_console systemd 20 'device given up: the backend left'
xl destroy "$guest"
wait_gone "$guest" 20

# A restart, while a guest writes: it loses its disk, no grant stays mapped, and what listens beside
# the daemon's sockets stays.
listen 3000 /dev/null /dev/null
make_initrd writing-initrd /lab/scenarios/driver-domain/writing.sh
start_guest writing "$PWD/writing-initrd" "$PWD/disk.img" || fail "xl could not create the guest writing"
guest=$domid
wait_console writing 40 'lab: writing 2'
systemctl restart $unit
holds NRestarts 0
[ -S "${socket}_3000" ] || fail "a restart removes others' sockets"
wait_console writing 20 'device given up: the backend left'
[ -z "$(mapped_grants "$guest")" ] || fail "grants of domain $guest are mapped: $(mapped_grants "$guest")"
xl destroy "$guest"
wait_gone "$guest" 20

# A stop.
systemctl stop $unit
holds Result success
holds ExecMainStatus 0

# A configuration that is wrong: the start fails, says where, and is not tried again and again.
echo '[default.net]
bridge = 5' >$settings
! systemctl start $unit || fail "the daemon starts with a configuration that is wrong"
holds ActiveState failed
holds ExecMainStatus 78
journal err | grep -F "$settings:2: default.net.bridge" >/dev/null || fail "no error says where: $(journal err)"
rm $settings
systemctl start $unit
holds NRestarts 0
check_nothing_mapped
