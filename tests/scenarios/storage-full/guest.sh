# Writes more to each disk than its storage has room for, past the guest's page cache.
wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb
dd if=/dev/urandom of=/tmp/data bs=1M count=12 2>/dev/null
sum=$(sha256sum </tmp/data)
echo "lab: writing"
write_to() {
    dd if=/tmp/data of="$1" bs=256k oflag=direct conv=notrunc 2>/dev/null || return 1
    echo "lab: wrote $2 $sum"
}
write_to /dev/vda memory &
first=$!
write_to /dev/vdb volume &
wait $first && wait $!
