# For each word from Dom0, writes the first sectors of both disks, and then other data to the same.
for disk in vda vdb; do
    wait_for "the disk /dev/$disk" 20 test -b "/dev/$disk"
done

# write: writes /tmp/data to both disks at once, past this guest's page cache.
write() {
    dd if=/tmp/data of=/dev/vda bs=64k oflag=direct conv=fsync 2>/dev/null &
    first=$!
    dd if=/tmp/data of=/dev/vdb bs=64k oflag=direct conv=fsync 2>/dev/null
    wait $first
}

echo "lab: ready"
round=0
while read -r word && [ "$word" = write ]; do
    round=$((round + 1))
    head -c 64k /dev/urandom >/tmp/data
    write
    echo "lab: first $round"
    head -c 64k /dev/urandom >/tmp/data
    write
    echo "lab: sum-$round $(sha256sum </tmp/data)"
    echo "lab: second $round"
done
