# A guest that verifies what it writes and sends a TCP stream, for scenarios that disturb it; after
# lib.sh. Needs the programs of `# needs: fio`.

# receive_streams: makes the bridge xenbr0, and receives streams there until the script ends.
receive_streams() {
    trap 'kill ${receiver:-} 2>/dev/null || true; ip link delete xenbr0 2>/dev/null || true' EXIT
    modprobe -a tun bridge
    mount_programs
    ip link add xenbr0 type bridge
    ip address add 10.9.0.1/24 dev xenbr0
    ip link set xenbr0 up
    # Not by `tool`: the trap ends the program itself.
    LD_LIBRARY_PATH=/run/programs/lib /run/programs/bin/iperf3 -s >"$RESULTS/iperf3" 2>&1 &
    receiver=$!
}

# start_loaded_guest NAME DISKS SED…: starts a guest with one or two disks and an interface, as
# start_example does, and waits until it has verified the disks once. The interface has the key
# transport, which the examples leave out.
start_loaded_guest() {
    local guest=$1 first=${2%% *} disks
    # shellcheck disable=SC2086 # a second disk, or none
    disks=$(disk_lines "$first" /lab/files/programs.img:r ${2#"$first"})
    shift 2
    make_initrd initrd /lab/scenarios/kill-under-load/guest.sh
    start_example "blk-$GUEST" "$guest" "$PWD/initrd" "s|^memory = .*|memory = 256|" \
        "s|^disk = .*|disk = [$disks]\nvirtio = [\"type=virtio,device1,transport=mmio,grant_usage=1\"]|" \
        "$@" || fail "xl could not create the guest"
    wait_console "$guest" 240 'lab: round 1'
}

# received DOMID: prints the bytes that came from the guest by its present interface.
received() {
    cat "/sys/class/net/$(xenstore-read "/local/domain/0/backend/virtio/$1/0/tap")/statistics/rx_bytes"
}
