# Network interfaces of one guest, each at a bridge of its own in Dom0, measured in turns: by xen-virtiod and by
# xen-netback.
# limit: 900
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

clean_up() {
    kill $servers
    ip link delete xenbr0
    ip link delete xenbr1
}

modprobe xen-netback
for bridge in 0 1; do
    ip link add xenbr$bridge type bridge
    ip address add 10.9.$bridge.1/24 dev xenbr$bridge
    ip link set xenbr$bridge up
done
unpack /lab/files/iperf3.cpio programs
LD_LIBRARY_PATH=$PWD/programs/lib programs/bin/iperf3 -s >iperf3.log 2>&1 &
servers=$!
probe answer 0.0.0.0:7 &
servers="$servers $!"
trap clean_up EXIT

make_disk results.img 32
make_jobs jobs.cpio "$GUEST" 'results xvdo'
make_initrd initrd /lab/scenarios/bench-net/guest.sh /lab/files/modules.cpio /lab/files/iperf3.cpio \
    jobs.cpio
name=$GUEST-bench-net
start_example "net-$GUEST" $name "$PWD/initrd" "s|^memory = .*|memory = 512|" \
    "s|^virtio = .*|&\nvif = [$(netback xenbr1)]\ndisk = [$(own xvdo "$PWD/results.img")]|" ||
    fail "xl could not create the guest"
end_guest $name 800
xen-virtiod stat --json >"$RESULTS/counters"
tar -x -C "$RESULTS" -f results.img
machine_facts $name
