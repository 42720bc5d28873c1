# Reads when Dom0 requests it, with the requested number of jobs, each on a virtual processor of its
# own.
. /disks.sh

load xen-blkfront
find_disks
tool fio --version
echo "lab: ready"
while read -r figure server jobs; do
    [ "$figure" != end ] || break
    tool fio --eta=never --output-format=json --output=/tmp/fio --name=read --rw=randread --bs=4k \
        --iodepth=32 --filename="/dev/bench/$server-file" --ioengine=libaio --direct=1 --thread=1 \
        --time_based=1 --runtime=1000ms --ramp_time=200ms --size=16m --group_reporting=1 \
        --numjobs="$jobs" --cpus_allowed=0-$((jobs - 1)) --cpus_allowed_policy=split
    echo "lab: $figure $(sed -n 's/^ *"iops" : \([0-9.]*\).*/\1/p' /tmp/fio | head -n 1)"
done
