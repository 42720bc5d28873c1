# Functions for scenarios with a guest whose root is on a virtio disk: the disk guest-root of Dom0.

name=$GUEST-$(basename "$(dirname "$0")")
root_is='/dev/vda ext4'

# disk_named SERIAL: prints the path of Dom0's disk with this serial number.
disk_named() {
    echo "/dev/$(basename "$(dirname "$(grep -lx "$1" /sys/block/vd*/serial)")")"
}

disk=$(disk_named guest-root)
# How often the system had booted. Other guests may have booted it before.
boots=

# boot_files: copies the guest's kernel and initrd, as an administrator does for a guest that boots
# them from Dom0.
boot_files() {
    mkdir -p system
    mount -t ext4 -o ro "$disk" system
    cp -L system/vmlinuz system/initrd.img .
    umount system
}

# by_dom0: prints a command of sed after which a PV or PVH example names the copied files, and not
# pygrub.
by_dom0() {
    printf '%s' "s|^bootloader = .*|kernel = \"$PWD/vmlinuz\"|; " \
        "s|^bootloader_args = .*|ramdisk = \"$PWD/initrd.img\"\\nextra = \"console=hvc0 root=/dev/vda ro\"|"
}

# start_root SED…: starts the guest with the example of its kind, to which it applies each SED.
start_root() {
    set -- "s|target=.*\"|target=$disk\"|" "$@"
    if [ "$GUEST" = hvm ]; then
        boot_files
        set -- "$@" "s|^kernel = .*|kernel = \"$PWD/vmlinuz\"|" \
            "s|^ramdisk = .*|ramdisk = \"$PWD/initrd.img\"|"
    fi
    case $GUEST in
    pv) start_example root-pv "$name" "$PWD/initrd.img" "$@" ;;
    pvh) start_example root-pvh "$name" "$PWD/initrd.img" "$@" ;;
    hvm) start_example root-hvm "$name" "$PWD/initrd.img" "$@" ;;
    esac || fail "xl could not create the guest"
}

# wait_up: waits until the guest is up once more. The domain is another one after a reboot.
wait_up() {
    if [ -z "$boots" ]; then
        wait_console "$name" 240 'lab: up '
        boots=$(guest_said "$name" up)
    else
        boots=$((boots + 1))
        wait_console "$name" 240 "lab: up $boots"
    fi
    domid=$(xl domid "$name")
    [ "$(guest_said "$name" root)" = "$root_is" ] || fail "its root is $(guest_said "$name" root)"
    [ -n "$(guest_said "$name" module)" ] || fail "its module is not loaded"
    [ -z "$(guest_said "$name" 'failed units:')" ] ||
        fail "units of the guest failed: $(guest_said "$name" 'failed units:')"
}

# order COMMAND [LIMIT]: has the guest run a command, and waits for its success.
order() {
    tell_guest "$domid" "$1"
    wait_console "$name" "${2:-240}" "lab: status of $1:"
    [ "$(guest_said "$name" "status of $1:")" = 0 ] || fail "the guest's $1 failed"
}

# shut_down: has the guest shut down.
shut_down() {
    tell_guest "$domid" poweroff
    wait_gone "$domid" 120
}

# end_root: shuts the guest down, and checks its file system.
end_root() {
    shut_down
    e2fsck -fn "$disk" || fail "the guest's file system has errors"
    check_nothing_mapped
}
