# Functions for two guests of which one measures its network to the other.

# measure_pair NAME END LINES: measures between two guests, whose configuration has LINES for their
# interfaces. NAME begins their names; results name the other end END.
measure_pair() {
    local name=$1 end=$2 lines="s|^disk = .*|&\\n$3|" answering
    make_left
    make_jobs answering.cpio 'programs xvdp' -- 'eth0 virtio_net 0@ours' 'eth1 xen-netfront 1@netback'
    make_initrd initrd /lab/scenarios/bench-guests/answering.sh /lab/files/modules.cpio answering.cpio
    start_bench "$name-answering" "$(programs own)" "$lines"
    answering=$domid
    wait_console "$name-answering" 60 'lab: answering'

    make_jobs jobs.cpio 'results xvdo' 'programs xvdp' -- \
        'eth0 virtio_net 0@ours' 'eth1 xen-netfront 1@netback'
    measuring_script "$end" >script
    make_initrd initrd script /lab/files/modules.cpio jobs.cpio
    start_bench "$name" "$(own xvdo $LEFT), $(programs own)" "$lines"
    end_guest "$name" 1100
    take_left "$RESULTS"
    machine_facts "$name"
    domid=$answering
    tell_guest "$domid" end
    end_guest "$name-answering" 40
}
