# A guest, whose kernel is in Dom0, copies its system to other disks and boots from them: its root
# on xfs, on btrfs, on LVM and on LUKS, with /boot on a partition that pygrub reads.
# guests:
# soak: pv pvh
# machine: systemd
# limit: 3600
. /lab/dom0/lib.sh
. /lab/dom0/root-disk.sh

layouts='xfs btrfs lvm luks'

# spare LAYOUT: prints the path of the disk for a layout.
spare() {
    disk_named "guest-$1"
}

# The system's own disk is xvda.
letters=bcde lines=
for layout in $layouts; do
    letter=${letters%"${letters#?}"} letters=${letters#?}
    lines="$lines, \"format=raw,vdev=xvd$letter,access=rw,backendtype=standalone,specification=virtio,target=$(spare "$layout")\""
done
boot_files
start_root "$(by_dom0)" "s|^\\(disk = .*\\)\\]|\\1$lines]|"
wait_up
letters=bcde
for layout in $layouts; do
    letter=${letters%"${letters#?}"} letters=${letters#?}
    order "lab-move $layout /dev/vd$letter" 900
done
shut_down

for layout in $layouts; do
    disk=$(spare "$layout") name=$GUEST-root-on-$layout boots=
    case $layout in
    xfs | btrfs) root_is="/dev/vda2 $layout" ;;
    lvm | luks) root_is='/dev/mapper/guest-root ext4' ;;
    esac
    start_root
    if [ "$layout" = luks ]; then
        # The question does not end its line.
        wait_for "the guest $name to ask for its passphrase" 240 true sh -c \
            'tail -n +1 -F "$1" | stdbuf -o0 tr ":" "\n" | grep --line-buffered -aF "$2"' \
            sh "$consoles/guest-$name.log" 'unlock disk guest-root'
        tell_guest "$domid" secret
    fi
    wait_up
    echo "root on $layout: $(guest_said "$name" root)"
    shut_down
done
check_nothing_mapped
