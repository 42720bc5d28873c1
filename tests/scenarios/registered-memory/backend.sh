# The driver domain: serves a guest's disk from its own one, until the guest is gone.
load xen-gntdev
load xen-evtchn
mkdir /run
wait_for "the disk /dev/vda" 20 test -b /dev/vda
xen-virtiod --log debug >/tmp/log 2>&1 &
wait_for "xen-virtiod to answer" 20 xen-virtiod stat >/dev/null
echo "lab: serving"
read -r _
cat /tmp/log
echo "lab: kernel $(uname -r)"
echo "lab: registers $(grep -c 'the kernel registers mapped grants' /tmp/log)"
echo "lab: refuses $(grep -c 'the kernel registers no mapped grants' /tmp/log)"
