# Reads and writes for the time that Dom0 requests, verifies all data, and prints the results.
wait_for "the disk with the programs" 30 test -b /dev/vdb
mount_programs /dev/vdb

# summary FILE: prints requests per second, the median and the 99th percentile of the latency of
# writes in ns, and the number of errors. Requests and errors are those of the writes and of the
# reads that verify them.
summary() {
    awk '
        /"(read|write|trim)" : \{/ { section = $1 }
        /"iops" :/ && section != "\"trim\"" { gsub(",", ""); requests += $3 }
        /"clat_ns" :/ { latency = 1 }
        /"(slat_ns|lat_ns)" :/ { latency = 0 }
        /"(50|99)\.000000" :/ && latency && section == "\"write\"" {
            gsub(/[",]/, "")
            if ($1 < 60) p50 = $3; else p99 = $3
        }
        /"(error|total_err)" :/ { gsub(",", ""); errors += $3 }
        END { print int(requests), p50, p99, errors + 0 }' "$1"
}

echo "lab: ready"
while read -r number kind seconds; do
    [ "$number" != end ] || break
    status=0
    program fio --eta=never --output-format=json --output=/tmp/fio --name=verified \
        --filename=/dev/vda --rw=randwrite --bs=4k --iodepth=4 --ioengine=libaio --direct=1 --thread=1 --size=16m \
        --verify=crc32c --verify_backlog=256 --verify_fatal=1 --time_based=1 --ramp_time=500ms \
        --runtime="${seconds}s" --percentile_list=50:99 || status=$?
    [ $status = 0 ] || cat /tmp/fio
    summary /tmp/fio >/tmp/summary
    read -r requests p50 p99 errors </tmp/summary
    echo "lab: round $number $kind $requests $p50 $p99 $((errors + status))"
done
