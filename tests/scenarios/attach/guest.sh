# Executes the lines that Dom0 writes behind a number, and prints for each one the number and its
# status, until an empty line comes.
load virtio_net
load virtio-rng
load vmw_vsock_virtio_transport

# sum DISK: prints the checksum of a disk's first MiB.
sum() {
    dd if="/dev/$1" bs=64k count=16 iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1
}

# is_gone PATH: waits until there is no such file.
is_gone() {
    wait_for "$1 to be gone" 20 test ! -e "$1"
}

echo "lab: ready"
while read -r number line && [ -n "$number" ]; do
    status=0
    eval "$line" || status=$?
    echo "lab: line $number status $status."
done
