# Measures network interfaces of one guest alternately, each at a bridge of its own in Dom0: one of
# xen-virtiod's and one of xen-netback's. After an HVM guest, the scenario starts a second one with
# emulated e1000 and rtl8139 cards and xen-netback. It has Dom0's kernel, because the default kernel
# has no drivers for the cards.
# guests: pv pvh hvm
# limit: 1200
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

clean_up() {
    kill $servers
    for bridge in 0 1 2 3; do
        ip link delete xenbr$bridge
    done
}

# take NUMBER: collects the results of the guest of that number. The number becomes part of the
# names of rounds, so that the two guests' rounds differ.
take() {
    local left=left-$1 figure
    mkdir -p "$left" "$RESULTS/figures"
    take_left "$left"
    for figure in "$left"/figures/*; do
        mv "$figure" "$RESULTS/figures/$1${figure##*/}"
    done
    machine_facts $name
}

servers=
trap clean_up EXIT
modprobe -a xen-netback xen-blkback tun
mount_programs
for bridge in 0 1 2 3; do
    ip link add xenbr$bridge type bridge
    ip address add 10.9.$bridge.1/24 dev xenbr$bridge
    ip link set xenbr$bridge up
done
tool iperf3 -s >iperf3.log 2>&1 &
servers=$!
probe answer 0.0.0.0:7 &
servers="$servers $!"

make_left
name=$GUEST-bench-net
disks="$(own xvdo $LEFT), $(programs)"
network='virtio = ["type=virtio,device1,transport=mmio,grant_usage=1"]'
make_jobs jobs.cpio 'results xvdo' 'programs xvdp' -- 'eth0 virtio_net 0@ours' \
    'eth1 xen-netfront 1@netback'
make_initrd initrd /lab/scenarios/bench-net/guest.sh /lab/files/modules.cpio jobs.cpio
start_bench "$name" "$disks" "s|^disk = .*|&\n$network\nvif = [$(netback xenbr1)]|"
end_guest $name 800
take 1
[ "$GUEST" = hvm ] || exit 0

# The second guest has no virtio_msg_xen.
name=hvm-bench-net-emulated
make_left
disks="$(blkback xvdo $LEFT), $(programs blkback)"
dom0_modules dom0-modules.cpio crc32c_generic ext4 xen-blkfront xen-netfront e1000 \
    8139cp
make_jobs jobs.cpio 'results xvdo' 'programs xvdp' -- 'eth0 xen-netfront 1@netback' \
    'eth1 e1000 2@e1000' 'eth2 8139cp 3@rtl8139'
make_initrd initrd /lab/scenarios/bench-net/guest.sh dom0-modules.cpio jobs.cpio
start_bench "$name" "$disks" "s|^kernel = .*|kernel = \"/lab/files/vmlinuz\"|" \
    "s|panic=-1|& xen_emul_unplug=unnecessary|" \
    "s|^disk = .*|&\nvif = [$(netback xenbr1)]\ndevice_model_args_hvm = [$(card e1000 2), $(card rtl8139 3)]|"
end_guest $name 800
take 2
