# Loads the device's driver, and waits until the kernel reports that it gave the device up.
given_up() {
    dmesg | grep -q 'device given up'
}

wait_for "the virtio device" 20 test -e /sys/bus/virtio/devices/virtio0
load virtio-rng
wait_for "the kernel to give the device up" 20 given_up
echo "lab: gone $(dmesg | grep 'device given up')"
echo "lab: status $(cat /sys/bus/virtio/devices/virtio0/status)"
