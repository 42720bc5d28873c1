# Uses its disk, then does what Dom0's lines say.
[ ! -e /reboot ] || {
    echo "lab: booted"
    reboot -f
}
# use: reads the disk, and writes a part of it.
use() {
    wait_for "the disk /dev/vda" 60 test -b /dev/vda
    dd if=/dev/vda of=/dev/null bs=256k count=8 iflag=direct 2>/dev/null
    dd if=/dev/urandom of=/dev/vda bs=64k count=4 oflag=direct conv=fsync 2>/dev/null
}
use
echo "lab: used"
while read -r line && [ "$line" != stop ]; do
    case $line in
    reboot) reboot -f ;;
    use)
        use
        echo "lab: used again"
        ;;
    esac
done
