# A guest whose root is on a virtio disk boots another kernel by kexec, for which xl resets its
# domain softly: the devices end and are made anew. A PV guest's kernel has no kexec, and says so.
# guests:
# soak: pv pvh hvm
# machine: systemd
# limit: 900
. /lab/dom0/lib.sh
. /lab/dom0/root-disk.sh

load='kexec --load /vmlinuz --initrd=/initrd.img --reuse-cmdline'
start_root
wait_up
if [ "$GUEST" = pv ]; then
    tell_guest "$domid" "$load"
    wait_console "$name" 120 "lab: status of $load:"
    [ "$(guest_said "$name" "status of $load:")" != 0 ] || fail "a PV guest loads a kernel"
else
    order "$load"
    before=$domid
    tell_guest "$domid" 'systemctl kexec'
    wait_up
    [ "$domid" = "$before" ] || fail "the guest was created anew: domain $before is $domid"
fi
end_root
