# Has a disk, until a line arrives.
wait_for "the disk /dev/vda" 30 test -b /dev/vda
echo "lab: ready"
read -r _
