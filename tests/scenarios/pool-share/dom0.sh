# Four disks of a guest with a small grant table: their pools together stay within the guest's share
# of references, each has its first 64 pages, and none fails.
# guests:
# soak: pv
# limit: 90
. /lab/dom0/lib.sh

line=$(sed -n 's/^disk = \["\(.*\)"\]$/\1/p' /lab/xen-configs/blk-pv.cfg)
disks=
for vdev in xvda xvdb xvdc xvdd; do
    make_disk $vdev.img 8
    disks="$disks\"$(echo "$line" | sed -e "s|vdev=xvda|vdev=$vdev|" \
        -e "s|target=.*|target=$PWD/$vdev.img|")\", "
done
make_initrd initrd /lab/scenarios/pool-share/guest.sh
name=$GUEST-pool-share
# 4 frames have 2048 references, of which 256 are for each pool and 768 for all pools that grow.
start_example "blk-$GUEST" "$name" "$PWD/initrd" "s|^disk = .*|disk = [$disks]|" \
    "s|^memory = .*|&\nmax_grant_frames = 4|" || fail "xl could not create the guest"
end_guest "$name" 60
check_nothing_mapped
