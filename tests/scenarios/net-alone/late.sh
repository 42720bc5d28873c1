# Drives its network device when Dom0 says so, and looks whether the kernel says that the device is
# given up.
given_up() {
    dmesg | grep -q 'device given up'
}

echo "lab: waiting"
read -r _
load virtio_net
wait_for "the kernel to give the device up" 20 given_up
echo "lab: gone $(dmesg | grep 'device given up')"
