# Makes a fixed number of requests of each kind twice: once for the daemon's counters, and once for
# its system calls.
. /disks.sh

find_disks
while read -r work options; do
    for when in before traced; do
        [ $when = traced ] || echo "lab: before $work"
        read -r _ <&3
        # shellcheck disable=SC2086 # options are words
        tool fio --eta=never --output=/tmp/fio --name="$work" --filename=/dev/bench/ours-file \
            --ioengine=libaio --direct=1 --thread=1 --size=64m $options
        [ $when = traced ] || echo "lab: after $work"
    done
    echo "lab: traced $work"
    read -r _ <&3
done 3<&0 </jobs/counts
