# The next guest: reads both disks.
both() {
    [ -b /dev/vda ] && [ -b /dev/vdb ]
}
wait_for "two disks" 20 both
echo "lab: found-1 $(sha256sum </dev/vda)"
echo "lab: found-2 $(sha256sum </dev/vdb)"
