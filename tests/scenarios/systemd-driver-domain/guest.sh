# Reads the disk and the entropy device.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
echo "lab: found $(sha256sum </dev/vda)"
load virtio-rng
[ "$(head -c 64 /dev/hwrng | wc -c)" = 64 ]
