# Functions for the bridges of measured interfaces, and the programs at their other end.

# link_bridges NUMBER: makes the bridges xenbr0 and so on. They end with the script.
link_bridges() {
    local bridge
    modprobe -a xen-netback tun
    bridges=$(seq 0 $(($1 - 1)))
    servers=
    trap end_bridges EXIT
    for bridge in $bridges; do
        ip link add "xenbr$bridge" type bridge
        ip link set "xenbr$bridge" up
    done
}

# make_bridges NUMBER: as link_bridges, with the addresses 10.9.0.1 and so on, and with iperf3 and
# probe as servers, which end with the script too.
make_bridges() {
    local bridge
    mount_programs
    link_bridges "$1"
    for bridge in $bridges; do
        ip address add "10.9.$bridge.1/24" dev "xenbr$bridge"
    done
    serve >"$RESULTS/iperf3" 2>&1 &
    servers=$!
    probe answer 0.0.0.0:7 &
    servers="$servers $!"
}

# serve: runs iperf3 as a server, again whenever it ends: a test that breaks off can end it.
serve() {
    trap 'kill $!; exit' TERM
    while :; do
        # Without the function tool, which would run it in a shell of its own.
        LD_LIBRARY_PATH=/run/programs/lib /run/programs/bin/iperf3 -s &
        wait $! || true
    done
}

end_bridges() {
    # shellcheck disable=SC2086 # process IDs are words
    [ -z "$servers" ] || kill $servers || true
    for bridge in $bridges; do
        ip link delete "xenbr$bridge"
    done
}

# network BACKEND: prints the lines of a configuration that give the guest an interface of
# xen-virtiod at xenbr0 and one of xen-netback at xenbr1, for sed. BACKEND is the domain that serves
# them, as xl names it, or nothing for Dom0.
network() {
    printf '%s\n' "virtio = [\"type=virtio,device1,grant_usage=1${1:+,backend=$1}\"]\\nvif = [$(netback xenbr1 "$1")]"
}

# measuring_script END: prints the script of a guest that measures interfaces whose other end is
# END, as results name it.
measuring_script() {
    echo "end=$1"
    cat /lab/scenarios/bench-net/guest.sh
}

# start_beside NAME SCENARIO: starts a guest with a disk and an interface by xen-virtiod, and one
# of each by xen-blkback and xen-netback. Needs bench-block/servers.sh.
start_beside() {
    local disks name=$1
    make_bridges 2
    make_files 2
    make_left
    make_jobs jobs.cpio 'ours-file xvdm' 'blkback-file xvde' 'results xvdo' 'programs xvdp' -- \
        'eth0 virtio_net 0@ours' 'eth1 xen-netfront 1@netback'
    make_initrd initrd "/lab/scenarios/$2/guest.sh" /lab/files/modules.cpio jobs.cpio
    disks="$(own xvdm /run/bench/0), $(blkback xvde /run/bench/1), $(own xvdo $LEFT), $(programs own)"
    start_bench "$name" "$disks" "s|^disk = .*|&\\n$(network "")|"
}
