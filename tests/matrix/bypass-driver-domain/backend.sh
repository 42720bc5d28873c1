# The driver domain. Outside Dom0, privcmd passes mapping calls to the hypervisor only if it is
# loaded with unrestricted=1.
load xen-gntdev
load xen-evtchn
while read -r module; do
    insmod "/lib/modules/$module" unrestricted=1
done </lib/modules/xen-privcmd.order
mkdir /run /srv
head -c 1048576 /dev/urandom >/srv/disk.img
echo "lab: image $(sha256sum </srv/disk.img)"
mkfifo /tmp/peeks /tmp/answer
vm-memory-xen bypass /tmp/peeks >/tmp/log 2>&1 &
wait_for "the backend to be ready" 20 grep -q ' ready ' /tmp/log
echo "lab: serving"

read -r guest frame
echo "$guest $frame /tmp/answer" >/tmp/peeks
cat /tmp/answer >/tmp/page
if grep -q '^refused: ' /tmp/page; then
    echo "lab: answer $(cat /tmp/page)"
else
    echo "lab: answer $(sha256sum </tmp/page)"
fi
echo "lab: refusal $(sed -n 's/.*\(the hypervisor refuses frame.*\)/\1/p' /tmp/log | head -n 1)"
echo "lab: disk $(sha256sum </srv/disk.img)"
read -r _
