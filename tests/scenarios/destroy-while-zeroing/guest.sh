wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb
size=$(($(cat /sys/block/vda/size) * 512))
for disk in vda vdb; do
    for part in 0 1 2 3; do
        while true; do
            probe zero-out /dev/$disk $((size / 4 * part)) $((size / 4))
        done &
    done
done
# zeroed DISK: checks whether the disk has completed more than 100 requests.
zeroed() {
    [ "$(awk '{ print $5 }' /sys/block/$1/stat)" -gt 100 ]
}

wait_for "requests to complete" 40 zeroed vda
wait_for "requests to complete" 40 zeroed vdb
echo "lab: zeroed"
wait
