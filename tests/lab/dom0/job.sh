# Functions for every Dom0 of the lab, with either init. Descriptor 9 is for events.

# stop WORDS…: prints the reason and powers off.
stop() {
    echo "lab: Dom0: $*"
    sync
    busybox poweroff -f
    exec sleep infinity # until the machine is off
}

# name_ports: links the lab's ports by their names, such as /dev/lab/events.
name_ports() {
    mkdir -p /dev/lab
    for port in /sys/class/virtio-ports/*; do
        name=$(cat "$port/name")
        ln -sf "/dev/${port##*/}" "/dev/lab/${name#lab.}"
    done
}

# keep_guests_off_dom0: see XEN_OPTIONS in tests/lab/src/boot/machine.rs.
keep_guests_off_dom0() {
    echo "vm.cpumask=\"$(nproc)\"" >>/etc/xen/xl.conf
}

# do_job: reports to the lab that Dom0 is ready, runs the lab's job, reports its exit status and
# powers off.
do_job() {
    echo ready >&9
    cd /lab/files || stop "the lab's payload has no directory /lab/files"
    /lab/job </dev/null >/dev/lab/stdout 2>/dev/lab/stderr
    echo "exit $?" >&9
    stop "the job is done"
}
