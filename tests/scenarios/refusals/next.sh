wait_for "the disk /dev/vda" 20 test -b /dev/vda
dd if=/dev/urandom of=/dev/vda bs=64k count=4 conv=fsync 2>/dev/null
