# The floor: fio does the same works in Dom0, directly on the backing store.
# guests: pv
# limit: 300
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

clear_stores
trap 'rm -r /dev/bench' EXIT
mkdir -p /dev/bench "$RESULTS/rounds"
while read -r server key; do
    make_store "$key"
    ln -s "${store:?}" "/dev/bench/$server-$key"
done <"${jobs:?}/disks"
while read -r round pass; do
    tool fio --eta=never --output-format=json --output="$RESULTS/rounds/$round.json" "$jobs/$pass.fio"
done <"${jobs:?}/../passes"
