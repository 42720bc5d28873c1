# A guest with 64 disks finds them in the order of its configuration, and each image holds the data
# that the guest wrote to that disk. Linux does not find disks beyond xvdp, so the names go from
# xvda, xvda1, xvda2 and xvda3 to xvdp3. The daemon warns of a 65th disk, xvdq.
# guests:
# soak: pv
# not-on-arm: xl has room for 11 disks there
# limit: 180
. /lab/dom0/lib.sh

line=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' /lab/xen-configs/blk-pv.cfg)
disks=
for letter in a b c d e f g h i j k l m n o p q; do
    for partition in "" 1 2 3; do
        vdev=xvd$letter$partition
        make_disk "$vdev.img" 1
        echo "$vdev" | dd of="$vdev.img" conv=notrunc 2>/dev/null
        disks="$disks\"$(echo "$line" | sed -e "s|vdev=xvda|vdev=$vdev|" \
            -e "s|target=.*|target=$PWD/$vdev.img|")\", "
        [ $vdev != xvdq ] || break
    done
done

make_initrd initrd /lab/scenarios/many-disks/guest.sh
name=pv-many-disks
start_example blk-pv $name "$PWD/initrd" "s|^disk = .*|disk = [$disks]|" ||
    fail "xl could not create the guest"
wait_console $name 120 'lab: exit'
[ "$(xen-virtiod stat --json | grep -o '"state":"connected"' | wc -l)" = 64 ] ||
    fail "not all disks are connected: $(xen-virtiod stat | grep ^domain)"
grep -q "name=\"virtio_disk/268439552\".*no disk beyond xvdp is found by Linux guests" $daemon_log ||
    fail "the daemon's log does not warn of xvdq"
end_guest $name 30
check_nothing_mapped
for image in xvd[a-p]*.img; do
    [ "$(dd if="$image" bs=512 skip=1 count=1 2>/dev/null | head -n 1)" = "guest ${image%.img}" ] ||
        fail "$image does not hold the data that the guest wrote to that disk"
done
