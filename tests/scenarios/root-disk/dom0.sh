# A Debian 13 guest whose root is on a virtio disk, with the package of the module in it, boots by
# pygrub, or an HVM guest by a kernel from Dom0. Its doctor finds no error, and its file system is
# clean when it has shut down. (It reboots in the scenario root-initrd.)
# guests: pv
# soak: pvh hvm
# machine: systemd
# limit: 400
. /lab/dom0/lib.sh
. /lab/dom0/root-disk.sh

start_root
wait_up
echo "kernel $(guest_said "$name" kernel), root $(guest_said "$name" root)"
order virtio-msg-xen-doctor
end_root
