# Writes until Dom0 destroys the guest.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
dd if=/dev/urandom of=/tmp/noise bs=1M count=16 2>/dev/null
turn=0
while true; do
    turn=$((turn + 1))
    echo "lab: writing $turn"
    dd if=/tmp/noise of=/dev/vda bs=64k oflag=direct 2>/dev/null
done
