wait_for "the disk /dev/vda" 20 test -b /dev/vda
echo "lab: disk $(sha256sum </dev/vda)"
