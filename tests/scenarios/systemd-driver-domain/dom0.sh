# A driver domain boots systemd, without Xen's own units, and xen-virtiod's package is installed
# there: the unit loads the modules, and the daemon serves a guest's devices.
# guests: pv
# machine: systemd
# limit: 180
. /lab/dom0/lib.sh

# The package, and a unit that installs it once systemd runs. dpkg knows none of the system's other
# packages.
units=root/install/etc/systemd/system
mkdir -p root/install/srv $units/multi-user.target.wants
cp /lab/packages/xen-virtiod_*.deb root/install/srv/xen-virtiod.deb
cat >$units/install.service <<EOF
[Service]
Type=oneshot
ExecStart=/usr/bin/dpkg --force-depends -i /srv/xen-virtiod.deb
EOF
ln -s ../install.service $units/multi-user.target.wants/
head -c 4M /dev/urandom >root/install/srv/disk.img
image=$(sha256sum <root/install/srv/disk.img)
cp /lab/scenarios/systemd-driver-domain/init root/init
(cd root && find . | busybox cpio -o -H newc 2>/dev/null) >install.cpio
cat /lab/boot/initrd install.cpio >backend-initrd

system=$(dirname "$(grep -lx system /sys/block/vd*/serial)")
options='console=hvc0 panic=-1 systemd.mask=xen.service systemd.mask=xendomains.service'
options="$options systemd.journald.forward_to_console=1 systemd.show_status=no"
start_example driver-domain driver-domain "$PWD/backend-initrd" \
    's|^kernel = .*|kernel = "/lab/boot/vmlinuz"|' 's|^memory = .*|memory = 640|' \
    "s|^extra = .*|extra = \"$options\"|" "\$adisk = [\"phy:/dev/${system##*/},xvda,r\"]" ||
    fail "xl could not create the driver domain"
backend=$domid
wait_console driver-domain 120 'ready version'
# As in the scenario driver-domain. Not earlier: it boots faster on a processor of its own.
xl vcpu-pin -i driver-domain 0 0

make_initrd guest-initrd /lab/scenarios/systemd-driver-domain/guest.sh
start_example blk-driver-domain served "$PWD/guest-initrd" || fail "xl could not create a guest"
end_guest served 60
[ "$(guest_said served found)" = "$image" ] ||
    fail "the guest read data that the driver domain's image did not hold"
xl destroy "$backend"
wait_gone "$backend" 20
