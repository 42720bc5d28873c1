# Unload the kernel's driver, which releases the device.
wait_for "the disk /dev/vda" 20 test -b /dev/vda
disk=$(basename /sys/bus/xen/devices/virtio_disk-*)
echo "$disk" >/sys/bus/xen/drivers/virtio_msg_xen/unbind
rmmod virtio_msg_xen
for module in xen-evtchn xen-gntalloc xenfs; do
    load $module
done
echo "lab: idle"
read -r _

# The process can open these devices and no others of /dev/xen.
mkdir -p /etc
echo 'driver:x:1000:1000::/:/bin/sh' >/etc/passwd
for device in evtchn gntalloc xenbus; do
    chown 1000 "/dev/xen/$device"
done
drive() {
    su driver -c "exec /bin/user-driver device/virtio_disk/${disk#virtio_disk-} $1"
}

# The full FIFO stops the process in the middle of its work, so that Dom0 can check its mappings.
mkfifo /tmp/fifo
drive read >/tmp/fifo &
exec 3</tmp/fifo
head -c 4096 <&3 >/tmp/read
driver=$(pidof user-driver)
echo "lab: uid $(sed -n 's/^Uid:[[:space:]]*//p' "/proc/$driver/status" | tr '\t' ' ')"
echo "lab: capabilities $(sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$driver/status")"
echo "lab: opened $(ls -l "/proc/$driver/fd" | sed -n 's|.* -> /dev/xen/||p' | sort -u | xargs)"
echo "lab: driving"
read -r _
cat <&3 >>/tmp/read
exec 3<&-
echo "lab: read $(sha256sum </tmp/read)"

head -c 1048576 /dev/urandom >/tmp/written
drive write </tmp/written
echo "lab: written $(sha256sum </tmp/written)"
echo "lab: read-back $(drive read | sha256sum)"
