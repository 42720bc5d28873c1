# Does each of the few works on a disk while a TCP stream leaves the guest, in reverse order in
# every second round.
. /disks.sh
. /net.sh

# do_beside WORK SERVER DISK BRIDGE OPTION…: does the work on DISK beside a stream to the bridge.
do_beside() {
    results=/tmp/results named=$1@$2-file_beside disk=$3 bridge=$4
    shift 4
    measured "/tmp/stream-$named" -t 3 -c "10.9.$bridge.1" &
    tool fio --eta=never --output-format=json --output="$results/rounds/$round-$named.json" \
        --name="$named" --filename="$disk" --ioengine=libaio --direct=1 --thread=1 --size=64m \
        --time_based=1 --ramp_time=500ms "$@"
    wait $!
    # The report has one row for the stream, beside the work with the most requests.
    case $named in
    randread-4k-qd32@*)
        mv "/tmp/stream-$named" "$results/figures/$round-tcp-out@${named#*@}.json"
        ;;
    esac
}

load xen-blkfront
find_disks
find_interfaces
while read -r round pass; do
    echo "lab: round $round $pass"
    while read -r work options; do
        # shellcheck disable=SC2086 # options are words
        for server in $([ "$pass" = backward ] && echo theirs ours || echo ours theirs); do
            case $server in
            ours) do_beside "$work" ours /dev/bench/ours-file 0 $options ;;
            theirs) do_beside "$work" blkback-netback /dev/bench/blkback-file 1 $options ;;
            esac
        done
    done </jobs/few
done </jobs/passes
leave
