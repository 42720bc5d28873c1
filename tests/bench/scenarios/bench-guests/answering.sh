# Answers a guest that measures, with iperf3 and probe, until Dom0 writes a line.
. /disks.sh
. /net.sh

load xen-blkfront
find_disks
ip link set lo up
while read -r name module server; do
    interface "$name" "$module" "10.9.${server%@*}.1"
done </jobs/interfaces
# Again whenever it ends: a test that breaks off can end it.
while :; do
    tool iperf3 -s >/dev/null || true
done &
probe answer 0.0.0.0:7 &
echo "lab: answering"
read -r _
