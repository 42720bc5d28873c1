wait_for "the disks /dev/vda and /dev/vdb" 20 test -b /dev/vda -a -b /dev/vdb
# The disks have the order of the configuration, in whatever order the daemon answers.
[ "$(cat /sys/block/vda/size)" = 16384 ]
[ "$(cat /sys/block/vdb/size)" = 32768 ]
[ "$(cat /sys/block/vda/serial)" = xvda ]
[ "$(cat /sys/block/vdb/serial)" = xvdb ]

dd if=/dev/urandom of=/tmp/one bs=1M count=8 2>/dev/null
dd if=/dev/urandom of=/tmp/two bs=1M count=16 2>/dev/null
dd if=/tmp/one of=/dev/vda bs=64k conv=fsync 2>/dev/null &
dd if=/tmp/two of=/dev/vdb bs=128k conv=fsync 2>/dev/null
wait $!
echo "lab: one $(sha256sum </tmp/one)"
echo "lab: two $(sha256sum </tmp/two)"
