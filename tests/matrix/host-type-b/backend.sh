# The driver domain: serves a disk from its own memory. For each word on its console, it prints the
# disk's checksum and the counters of its xen-virtiod.
load xen-gntdev
load xen-evtchn
mkdir /run /srv
dd if=/dev/urandom of=/srv/disk.img bs=64k count=16 2>/dev/null
xen-virtiod >/dev/console 2>&1 &
daemon=$!
wait_for "xen-virtiod to answer" 20 xen-virtiod stat >/dev/null
echo "lab: serving"

while read -r word; do
    echo "lab: $word-image $(sha256sum </srv/disk.img)"
    echo "lab: $word-addresses $(xen-virtiod stat | sed -n 's/^  addresses  //p')"
    processes="$daemon $(cat /proc/$daemon/task/*/children)"
    echo "lab: $word-opened $(for process in $processes; do ls -l "/proc/$process/fd"; done | sed -n 's|.* -> /dev/xen/||p' | sort -u | xargs)"
    echo "lab: $word-told"
done
