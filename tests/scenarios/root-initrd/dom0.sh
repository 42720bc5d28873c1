# A guest whose root is on a virtio disk panics and boots again; it boots an initrd that it made
# itself for just this machine, by initramfs-tools (MODULES=dep) and by dracut (--hostonly), and
# another kernel that it installed.
# guests:
# soak: pv pvh
# machine: systemd
# limit: 2700
. /lab/dom0/lib.sh
. /lab/dom0/root-disk.sh

# reboot: waits until the guest is up again.
reboot() {
    tell_guest "$domid" reboot
    wait_up
}

start_root
wait_up
tell_guest "$domid" panic
wait_up
order make_initrd
reboot
order make_dracut_initrd
reboot
before=$(guest_said "$name" kernel)
# For this one, dkms builds the module in the guest.
order 'dpkg -i /var/cache/lab-kernel/*.deb' 1500
reboot
after=$(guest_said "$name" kernel)
[ "$after" != "$before" ] || fail "the guest still has the kernel $before"
echo "kernel $before, then $after"
end_root
