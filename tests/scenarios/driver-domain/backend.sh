# The driver domain: serves guests' disks from its own memory until Dom0 destroys it.
load xen-gntdev
load xen-evtchn
mkdir /run /srv
dd if=/dev/urandom of=/srv/disk.img bs=1M count=4 2>/dev/null
echo "lab: image $(sha256sum </srv/disk.img)"
xen-virtiod >/dev/console 2>&1 &
daemon=$!
wait_for "xen-virtiod to answer" 20 xen-virtiod stat >/dev/null
echo "lab: serving"

# Try to map a page of a guest by its frame number. Outside Dom0, privcmd passes such calls to the
# hypervisor only if it is loaded with unrestricted=1.
read -r guest frame
processes="$daemon $(cat /proc/$daemon/task/*/children)"
opened=$(for process in $processes; do ls -l "/proc/$process/fd"; done | sed -n 's|.* -> \(/dev/xen/.*\)|\1|p' | sort -u | xargs)
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
read -r _
