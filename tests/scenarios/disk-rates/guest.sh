# Reads and writes the disk at the same time, as fast as it goes, and prints the rates: KiB in a
# second of reads, number in a second of writes.
wait_for "the disk with fio" 20 test -b /dev/vdb
mount_programs /dev/vdb

# rates WORD: measures and prints.
rates() {
    program fio --minimal --filename=/dev/vda --direct=1 --ioengine=libaio --runtime=10 --time_based \
        --name=reads --rw=randread --bs=64k --iodepth=8 --offset=0 --size=16m \
        --name=writes --rw=randwrite --bs=4k --iodepth=8 --offset=16m --size=16m >/tmp/rates
    # The fields are fio's, of its third version of terse output.
    echo "lab: $1 reads $(awk -F';' '$3 == "reads" { print $7 }' /tmp/rates)"
    echo "lab: $1 writes $(awk -F';' '$3 == "writes" { print int($49) }' /tmp/rates)"
    echo "lab: $1 done"
}

rates first
read -r _
rates second
