# Functions for scenarios with a guest whose root is on a virtio disk: the disk guest-root of Dom0.

name=$GUEST-$(basename "$(dirname "$0")")
disk=/dev/$(basename "$(dirname "$(grep -lx guest-root /sys/block/vd*/serial)")")
boots=0

# boot_files: copies the guest's kernel and initrd, as an administrator does for an HVM guest.
boot_files() {
    mkdir -p system
    mount -t ext4 -o ro "$disk" system
    cp -L system/vmlinuz system/initrd.img .
    umount system
}

# start_root: starts the guest with the example of its kind, and waits until it is up.
start_root() {
    set -- "s|target=.*\"|target=$disk\"|"
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
    wait_up
}

# wait_up: waits until the guest is up once more. The domain is another one after a reboot.
wait_up() {
    boots=$((boots + 1))
    wait_console "$name" 240 "lab: up $boots"
    domid=$(xl domid "$name")
    [ "$(guest_said "$name" root)" = '/dev/vda ext4' ] || fail "its root is $(guest_said "$name" root)"
    [ -n "$(guest_said "$name" module)" ] || fail "its module is not loaded"
    [ -z "$(guest_said "$name" 'failed units:')" ] ||
        fail "units of the guest failed: $(guest_said "$name" 'failed units:')"
}

# order COMMAND: has the guest run a command, and waits for its success.
order() {
    tell_guest "$domid" "$1"
    wait_console "$name" 240 "lab: status of $1:"
    [ "$(guest_said "$name" "status of $1:")" = 0 ] || fail "the guest's $1 failed"
}

# end_root: shuts the guest down, and checks its file system.
end_root() {
    tell_guest "$domid" poweroff
    wait_gone "$domid" 120
    e2fsck -fn "$disk" || fail "the guest's file system has errors"
    check_nothing_mapped
}
