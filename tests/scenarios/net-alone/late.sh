# Loads the network driver when Dom0 requests it, and waits until the kernel reports that it gave
# the device up.
given_up() {
    dmesg | grep -q 'device given up'
}

echo "lab: waiting"
read -r _
load virtio_net
wait_for "the kernel to give the device up" 20 given_up
echo "lab: gone $(dmesg | grep 'device given up')"
