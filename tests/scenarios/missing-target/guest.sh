wait_for "the disk /dev/vda" 20 test -b /dev/vda
[ "$(cat /sys/block/vda/size)" = 2048 ]
