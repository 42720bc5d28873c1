# Does each work with each interface, in reverse order in every second round, and writes the tools'
# output to the disk for results. Dom0 prepends a line `end=END`, what is at the bridges' other end.
. /disks.sh
. /net.sh

load xen-blkfront
find_disks
find_interfaces

# do_pass WORKS: does each work of the file WORKS with each interface.
do_pass() {
    echo "lab: round $round $pass"
    case $pass in
    backward) servers=${backward:?} ;;
    *) servers=${forward:?} ;;
    esac
    while read -r work options; do
        for server in $servers; do
            to=10.9.${server%@*}.1 result=/tmp/results/figures/$round-$work@${server#*@}-${end:?}
            case $work in
            tcp-rr) probe round-trips "$to:7" 1000 >"$result.rate" ;;
            *)
                # shellcheck disable=SC2086 # options are words
                measured "$result.json" -t 1 -c "$to" $options
                ;;
            esac
            echo "lab: did $work $server at $(cut -d ' ' -f 1 /proc/uptime)"
        done
    done <"$1"
}

while read -r round pass; do
    do_pass /jobs/net
done </jobs/passes
[ ! -s /jobs/more ] || find_close
while read -r round pass; do
    awk 'NR == FNR { sub(/@.*/, ""); close_works[$0]; next } $1 in close_works' /tmp/close /jobs/net >/tmp/net
    [ -s /tmp/net ] || break
    do_pass /tmp/net
done </jobs/more
leave
