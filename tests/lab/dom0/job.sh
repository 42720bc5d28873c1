# What every Dom0 of the lab does, whatever started it. Descriptor 9 is for events.

# stop WORDS…: powers off.
stop() {
    echo "lab: Dom0: $*"
    sync
    busybox poweroff -f
    exec sleep infinity # the machine goes off under it
}

# name_ports: the lab's ports by their names: /dev/lab/events and so on.
name_ports() {
    mkdir -p /dev/lab
    for port in /sys/class/virtio-ports/*; do
        name=$(cat "$port/name")
        ln -sf "/dev/${port##*/}" "/dev/lab/${name#lab.}"
    done
}

# keep_guests_off_dom0s_processor: see XEN_OPTIONS in tests/lab/src/boot/machine.rs.
keep_guests_off_dom0s_processor() {
    echo 'vm.cpumask="1"' >>/etc/xen/xl.conf
}

# do_job: tells the lab that Dom0 is ready, does the job that it brought, tells it the job's exit
# status and powers off.
do_job() {
    echo ready >&9
    cd /lab/files || stop "the lab brought no /lab/files"
    /lab/job </dev/null >/dev/lab/stdout 2>/dev/lab/stderr
    echo "exit $?" >&9
    stop "the job is done"
}
