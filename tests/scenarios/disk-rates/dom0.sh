# A disk whose rates are limited keeps the limits within 5 %, for reads and writes apart;
# `xen-virtiod reload` changes them while the guest uses the disk, and says so. The limits are low:
# an emulated processor is busy with a few hundred requests in a second.
# guests: pv
# soak: pvh
# limit: 150
# needs: fio
. /lab/dom0/lib.sh

settings=/etc/xen-virtiod.toml
trap 'rm -f $settings' EXIT
name=$GUEST-disk-rates

cat >$settings <<E
[domain.$name.disk.xvda.limits]
read-rate = "2MiB/s"
write-iops = 50
E
xen-virtiod check
make_disk disk.img 32
make_initrd initrd /lab/scenarios/disk-rates/guest.sh
start_guest "$name" "$PWD/initrd" "$PWD/disk.img" /lab/files/programs.img:r ||
    fail "xl could not create the guest"
xen-virtiod stat | grep 'limits *read-rate 2097152 B/s, write-iops 50, burst 100ms' ||
    fail "stat does not show the limits: $(xen-virtiod stat)"

# near VALUE LIMIT WHAT: checks that a rate is within 5 % of its limit.
near() {
    echo "$3: $1 of $2"
    [ "$1" -ge $(($2 * 95 / 100)) ] && [ "$1" -le $(($2 * 105 / 100)) ] ||
        fail "$3 have a rate of $1, and a limit of $2"
}

wait_console "$name" 60 'lab: first done'
near "$(guest_said "$name" 'first reads')" 2048 'reads, in KiB/s'
near "$(guest_said "$name" 'first writes')" 50 'writes in a second'

sed -i -e 's/2MiB/4MiB/' -e 's/^write-iops.*/write-iops = "unlimited"/' $settings
xen-virtiod reload >reloaded
cat reloaded
before='read-rate 2097152 B/s, write-iops 50, burst 100ms'
grep -qxF "$name xvda: $before -> read-rate 4194304 B/s, burst 100ms" reloaded ||
    fail "reload does not say what changed"
tell_guest "$domid" again
wait_console "$name" 60 'lab: second done'
near "$(guest_said "$name" 'second reads')" 4096 'reads, in KiB/s'
[ "$(guest_said "$name" 'second writes')" -gt 75 ] ||
    fail "writes still have a limit: $(guest_said "$name" 'second writes') in a second"
end_guest "$name" 30
check_nothing_mapped
