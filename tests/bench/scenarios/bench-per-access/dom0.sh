# Measures the same disk alternately with xen-virtiod and with a backend that uses vm-memory's
# support for Xen, which maps each buffer on access. Each backend serves all virtio disks of the
# host, so each measurement has a guest of its own.
# guests: pvh
# limit: 900
. /lab/dom0/lib.sh
. /lab/scenarios/bench-block/servers.sh

# turn ROUND SERVER PROGRAM…: starts the backend PROGRAM, runs the guest's works, and collects the
# results.
turn() {
    local round=$1 server=$2 file
    shift 2
    stop_daemon
    start_daemon "$@"
    make_jobs jobs.cpio "$server-alone xvdm" 'results xvdo' 'programs xvdp'
    make_initrd initrd /lab/scenarios/bench-per-access/guest.sh /lab/files/modules.cpio jobs.cpio
    start_bench "$name" "$disks"
    end_guest "$name" 150
    rm -rf left
    mkdir left
    take_left left
    for file in left/rounds/*; do
        mv "$file" "$RESULTS/rounds/$round-$server-${file##*/}"
    done
    machine_facts "$name"
}

make_files 1
make_left
disks="$(own xvdm /run/bench/0), $(blkback xvdo $LEFT), $(programs blkback)"
name=$GUEST-bench-per-access
mkdir "$RESULTS/rounds"
while read -r round pass <&3; do
    case $pass in
    # Each guest of a round is new, so a pass before them would warm up nothing.
    warm-up) ;;
    forward)
        turn "$round" ours xen-virtiod
        turn "$round" per-access vm-memory-xen map-per-access
        ;;
    backward)
        turn "$round" per-access vm-memory-xen map-per-access
        turn "$round" ours xen-virtiod
        ;;
    esac
done 3<"${jobs:?}/../passes"
