# The driver domain: serves guests' disks from its own memory until Dom0 destroys it.
load xen-gntdev
load xen-evtchn
mkdir /run /srv
dd if=/dev/urandom of=/srv/disk.img bs=1M count=4 2>/dev/null
echo "lab: image $(sha256sum </srv/disk.img)"

# serve: starts the daemon.
serve() {
    xen-virtiod >/dev/console 2>&1 &
    daemon=$!
    wait_for "xen-virtiod to answer" 20 xen-virtiod stat >/dev/null
}

# processes: prints the processes that serve guests.
processes() {
    cat /proc/$daemon/task/*/children
}

serve
echo "lab: serving"

# Try to map a page of a guest by its frame number. Outside Dom0, privcmd passes such calls to the
# hypervisor only if it is loaded with unrestricted=1.
read -r guest frame
opened=$(for process in $daemon $(processes); do ls -l "/proc/$process/fd"; done | sed -n 's|.* -> \(/dev/xen/.*\)|\1|p' | sort -u | xargs)
[ ! -e /dev/xen/privcmd ]
while read -r module; do
    insmod "/lib/modules/$module" unrestricted=1
done </lib/modules/xen-privcmd.order
foreign-map "$guest" "$frame" >/tmp/page 2>/tmp/refusal || true
[ ! -s /tmp/page ]
echo "lab: opened $opened"
echo "lab: refusal $(cat /tmp/refusal)"
echo "lab: tried"

read -r _
echo "lab: mapped $(xen-virtiod stat --json | grep -o '"grants_mapped":[1-9][0-9]*')"
echo "lab: disk $(sha256sum </srv/disk.img)"

# Kill the guest's process, the daemon, or both, whenever Dom0 says so.
killed=0
while read -r what && [ "$what" != end ]; do
    # shellcheck disable=SC2046 # a process is a word
    case $what in
    process) kill -9 $(processes) ;;
    daemon) kill -9 $daemon ;;
    both) kill -9 $(processes) $daemon ;;
    esac
    [ "$what" = process ] || serve
    killed=$((killed + 1))
    echo "lab: killed $killed"
done
read -r _
