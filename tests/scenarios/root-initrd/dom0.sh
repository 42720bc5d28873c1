# A guest whose root is on a virtio disk panics and boots again, and boots an initrd that it made
# itself for just this machine (MODULES=dep).
# guests:
# soak: pv pvh
# machine: systemd
# limit: 900
. /lab/dom0/lib.sh
. /lab/dom0/root-disk.sh

start_root
tell_guest "$domid" panic
wait_up
order make-initrd
tell_guest "$domid" reboot
wait_up
end_root
