# Reads and writes the disk at the same time, as fast as it goes, and prints the rates: KiB in a
# second of reads, number in a second of writes.
wait_for "the disk with fio" 20 test -b /dev/vdb
mount_programs /dev/vdb

# rates WORD: measures and prints. The first seconds do not count: an emulated processor translates
# the programs then. Requests for a second wait always, so that the limit is what keeps them
# waiting, even if one of both jobs has no processor for a while. Threads cost an emulated processor
# less than processes.
rates() {
    program fio --minimal --filename=/dev/vda --direct=1 --ioengine=libaio --runtime=10 --time_based \
        --ramp_time=3 --iodepth=64 --thread=1 \
        --name=reads --rw=randread --bs=64k --offset=0 --size=16m \
        --name=writes --rw=randwrite --bs=4k --offset=16m --size=16m >/tmp/rates
    # The fields are fio's, of its third version of terse output: KiB in a second. Its number of
    # requests in a second leaves some out behind a time that does not count.
    echo "lab: $1 reads $(awk -F';' '$3 == "reads" { print $7 }' /tmp/rates)"
    echo "lab: $1 writes $(awk -F';' '$3 == "writes" { print int($48 / 4) }' /tmp/rates)"
    echo "lab: $1 done"
}

rates first
read -r _
rates second
