# Row 12, "unless the platform's tables say so": the toolstack's keys for a disk in XenStore,
# grant_usage and trusted. The experiments show which domain reads each key, its effect, and that
# the guest can change only its own key.
# guests: pv
# limit: 300
. /lab/dom0/lib.sh

name=platform-tables

# disk VDEV WORDS IMAGE: prints a disk line.
disk() {
    sed -n 's/^disk = \["\(.*\)"\]$/"\1"/p' /lab/xen-configs/blk-pv.cfg |
        sed "s|vdev=xvda|vdev=$1|; s|grant_usage=1|$2|; s|target=[^\"]*|target=$3|"
}

# key DIRECTORY KEY: prints the value and the permissions, such as (n0,r1): after n the owner's
# number, then the domains that may read (r), write (w) or both (b).
key() {
    xenstore-ls -p "$1" | sed -n "s/^ *$2 = \(\"[^\"]*\"\)[ .]*\((.*)\)$/\1 \2/p"
}

# readers KEY: prints the numbers of the domains that have read the key of any disk.
readers() {
    sed -n "s/^io: IN [^ ]* (d\([0-9]*\)) .* READ (.*\/$1 *)$/\1/p" trace | sort -u | xargs
}

# usage DISK NUMBER: writes the result for a disk's grant_usage.
usage() {
    local value addresses said outcome='works, by grants'
    value=$(xenstore-read "$backends/$2/grant_usage")
    addresses=$(xen-virtiod stat | sed -n "/^domain $domid virtio_disk.$2[: ]/,/^domain/s/^  addresses  //p")
    sha256sum <"$1.img" >there
    guest_said $name written >written
    busybox cmp -s there written || outcome='works, data wrong'
    case $addresses in
    [1-9]*' by grant, '*' in the pool, 0 refused') ;;
    *) outcome="addresses: $addresses" ;;
    esac
    said=$(tail -c "+$((logged + 1))" $daemon_log | sed -n "s/^.*\/$2\"}: \(grant_usage.*\)/\1/p")
    result 12 b xen-virtiod Dom0 PV "grants, grant_usage=$value" "$outcome" \
        "$(key "$backends/$2" grant_usage); read by domain $(readers grant_usage); addresses $addresses; sha256 \
$(head -c 8 written) in the guest, $(head -c 8 there) in the image; xen-virtiod says ${said:-nothing of it}"
}

# trust PLACE NUMBER: writes the result for a disk's trusted.
trust() {
    local outcome
    case $(guest_said $name "bounces-first-$1") in
    0) outcome='the guest grants its buffers' ;;
    1) outcome='the guest bounces' ;;
    *) outcome='not known' ;;
    esac
    result 12 b xen-virtiod Dom0 PV "grants, trusted=$(xenstore-read "$frontends/$2/trusted")" "$outcome" \
        "$(key "$frontends/$2" trusted); read by domain $(readers trusted); the file bounce of the guest's device says \
$(guest_said $name "bounces-first-$1")"
}

logged=$(wc -c <$daemon_log)
make_disk one.img 1
make_disk two.img 1
make_initrd initrd /lab/scenarios/platform-tables/guest.sh
xenstore-control logfile "$PWD/trace" >/dev/null
xenstore-control log on >/dev/null
start_example blk-pv $name "$PWD/initrd" "s|^disk = .*|disk = [$(disk xvda grant_usage=1 "$PWD/one.img"), \
$(disk xvdb grant_usage=0,untrusted "$PWD/two.img")]|" || fail "xl could not create the guest"
backends=/local/domain/0/backend/virtio_disk/$domid
frontends=/local/domain/$domid/device/virtio_disk
wait_console $name 150 'lab: disks-done'
xenstore-control log off >/dev/null
usage one 51712
usage two 51728
trust 1 51712
trust 2 51728

before="$(key "$backends/51712" grant_usage), $(key "$frontends/51712" trusted)"
tell_guest "$domid" 'write to the tables'
wait_console $name 150 'lab: tries-done'
after="$(key "$backends/51712" grant_usage), $(key "$frontends/51712" trusted)"
tell_guest "$domid" 'look again'
end_guest $name 60

outcome='not refused'
case $(guest_said $name backend) in
*EACCES) outcome='refused, EACCES' ;;
esac
result 12 b xen-virtiod Dom0 PV 'the guest writes grant_usage' "$outcome" \
    "the guest reads $(guest_said $name sees); it writes: $(guest_said $name backend); before $before; after $after"
outcome=$(guest_said $name own)
[ "$(guest_said $name bounces-first-1) $(guest_said $name bounces-then-1)" != '0 1' ] ||
    outcome="$outcome, the guest bounces"
result 12 b xen-virtiod Dom0 PV 'the guest writes trusted' "$outcome" \
    "whom it trusts is its own to say; it writes: $(guest_said $name own); the file bounce of its device said \
$(guest_said $name bounces-first-1), says $(guest_said $name bounces-then-1) when the driver has started again"
