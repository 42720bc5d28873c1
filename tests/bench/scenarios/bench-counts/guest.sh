# Makes the requests that Dom0 asks for.
. /disks.sh
. /net.sh

# make_requests WORK SERVER NUMBER: makes that number of requests, and prints the number. For
# streams, NUMBER is in MiB, for packets in seconds, and for round trips in milliseconds.
make_requests() {
    options=$(sed -n "s/^$1 [^ ]* [^ ]* [^ ]* //p" /jobs/counts)
    case $2 in ours) bridge=0 ;; *) bridge=1 ;; esac
    case $1 in
    tcp-rr)
        probe round-trips 10.9.$bridge.1:7 "$3" | awk -v time="$3" '{ print int($1 * time / 1000) }'
        return
        ;;
    tcp-*) set -- "$@" -n "$3M" ;;
    udp-*) set -- "$@" -t "$3" ;;
    *)
        # io_size, unlike number_ios, may exceed the size: fio begins again.
        case $options in *bs=1m*) kibibytes=1024 ;; *) kibibytes=4 ;; esac
        # shellcheck disable=SC2086 # options are words
        tool fio --eta=never --output=/tmp/fio --name="$1" --filename="/dev/bench/$2-file" \
            --ioengine=libaio --direct=1 --thread=1 --size=64m --io_size="$(($3 * kibibytes))k" $options
        echo "$3"
        return
        ;;
    esac
    work=$1 number=$3
    shift 3
    # shellcheck disable=SC2086 # options are words
    measured /tmp/iperf -c 10.9.$bridge.1 $options "$@"
    case $work in
    # The last of iperf3's sums is that of the receiver.
    udp-*) awk '/"packets"/ { all = $2 + 0 } /"lost_packets"/ { lost = $2 + 0 } END { print all - lost }' /tmp/iperf ;;
    *) echo "$number" ;;
    esac
}

load xen-blkfront
find_disks
find_interfaces
echo "lab: ready"
while read -r request work server number; do
    [ "$request" != end ] || break
    echo "lab: did-$request $(make_requests "$work" "$server" "$number")"
done
