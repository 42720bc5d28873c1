# An HVM guest boots another kernel by kexec, and the kernel that it keeps for crashes after a panic
# (kdump), while it reads and writes. For each, xl resets the domain softly: its devices end and are
# made anew, so that the next kernel has them. Nothing of the last one stays mapped. xl does this
# for HVM guests alone. It destroys a PVH guest that kexecs, or creates it anew if on_soft_reset
# says so; in a PV guest kexec-tools give up.
# guests:
# soak: pv pvh hvm
# limit: 400
# needs: fio
. /lab/dom0/lib.sh

name=$GUEST-kexec
make_disk disk.img 16
make_initrd initrd /lab/scenarios/kexec/guest.sh
cp "$guest_files/vmlinuz" kernel.img
cp initrd initrd.img
truncate -s %4096 kernel.img initrd.img

# start NAME SED…: starts a guest that has a crash kernel's memory and reads both files of a kernel.
start() {
    local guest=$1
    shift
    start_example "blk-$GUEST" "$guest" "$PWD/initrd" 's|^memory = .*|memory = 768|' \
        's,^\(extra\|cmdline\) = ",&crashkernel=256M ,' \
        "s|^disk = .*|disk = [$(disk_lines "$PWD/disk.img" /lab/files/programs.img:r "$PWD/kernel.img:r" "$PWD/initrd.img:r")]|" \
        "$@" || fail "xl could not create the guest"
}

start "$name"
case $GUEST in
pv)
    end_guest "$name" 120
    grep -aq 'Could not get memory layout' "$consoles/guest-$name.log" || fail "kexec said something else"
    [ "$(guest_said "$name" loaded)" = no ] || fail "the PV guest's kernel loaded another one"
    ;;
pvh)
    wait_console "$name" 120 "lab: kernel first"
    # libxl_domain_soft_reset() refuses every guest but HVM ones.
    wait_gone "$domid" 120
    grep 'is soft-reset' "/var/log/xen/xl-$name.log" || fail "xl's log says nothing of a soft reset"
    truncate -s 0 disk.img
    make_disk disk.img 16
    start "$name-again" '$a on_soft_reset = "restart"'
    first=$domid
    wait_console "$name-again" 240 "lab: created anew"
    wait_gone "$first" 60
    domid=$(xl domid "$name-again")
    end_guest "$name-again" 60
    ;;
hvm)
    xl dmesg -c >/dev/null
    for kernel in first second third; do
        wait_console "$name" 120 "lab: kernel $kernel"
        echo "the kernel $kernel is up"
    done
    # Xen lists what is mapped when it resets a domain; reference 0 is the toolstack's console.
    xl dmesg | grep "d$domid has active grant 0 " || fail "Xen lists no grants at the resets"
    ! xl dmesg | grep "d$domid has .*active grant" | grep -v 'active grant [01] ' ||
        fail "grants were mapped when Xen reset the domain"
    end_guest "$name" 60
    [ "$(guest_said "$name" sum)" = "$(sha256sum <disk.img)" ] ||
        fail "the image does not hold the data that the guest wrote"
    ;;
esac
check_nothing_mapped
