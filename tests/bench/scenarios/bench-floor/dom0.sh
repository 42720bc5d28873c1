# The floor: fio does the same works in Dom0, directly on the backing store.
# guests: pv
# limit: 300
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

make_files 1
make_devices 1
mount_programs
trap 'umount -l programs; rm -r /dev/bench' EXIT
mkdir -p /dev/bench "$RESULTS/rounds"
ln -s /run/bench/0 /dev/bench/floor-file
ln -s /dev/ram0 /dev/bench/floor-ram
ln -s /dev/nullb3 /dev/bench/floor-null
round=1
while read -r order; do
    tool fio --eta=never --output-format=json --output="$RESULTS/rounds/$round.json" \
        "/lab/files/jobs/dom0/$order.fio"
    round=$((round + 1))
done </lab/files/jobs/dom0/rounds
