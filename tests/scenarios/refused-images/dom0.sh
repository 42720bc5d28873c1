# The daemon refuses images that it cannot serve, and logs the reason with a command that repairs or
# converts the image; it serves the result of the command. The daemon takes an image's format from
# the target's name, unless the configuration file sets it.
# guests:
# soak: pv
# limit: 150
. /lab/dom0/lib.sh

config=/etc/xen-virtiod.toml
trap 'rm -f $config' EXIT

# refused TARGET REASON…: checks that xl create fails, and that the daemon logs the reasons.
refused() {
    local target=$1 logged reason
    shift
    logged=$(wc -c <$daemon_log)
    ! start_guest refused /lab/guest/initrd "$target" 2>says ||
        fail "xl created a guest with $target"
    for reason; do
        tail -c "+$((logged + 1))" $daemon_log | grep -qF "$reason" ||
            fail "the log does not say '$reason' of $target: $(tail -n 3 $daemon_log)"
    done
}

# pattern IMAGE: writes a pattern, which the guest checks.
pattern() {
    qemu-io -c 'write -q -P 0x5a 1M 1M' "$1" >/dev/null
}

# A damaged image: the library's first write would have overwritten the image's header.
qemu-img create -q -f qcow2 damaged.qcow2 8M
pattern damaged.qcow2
dd if=/dev/zero of=damaged.qcow2 bs=64k seek=2 count=1 conv=notrunc 2>/dev/null
before=$(sha256sum <damaged.qcow2)
refused "$PWD/damaged.qcow2" 'it is damaged' "qemu-img check -r all \"$PWD/damaged.qcow2\""
[ "$(sha256sum <damaged.qcow2)" = "$before" ] || fail "the daemon changed the damaged image"
qemu-img check -q -r all damaged.qcow2 >/dev/null || fail "qemu-img did not repair the image"

# An encrypted image: the guest would have read and written the stored ciphertext.
printf secret >passphrase
qemu-img create -q -f qcow2 --object secret,id=s,file=passphrase \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 encrypted.qcow2 8M
qemu-io --object secret,id=s,file=passphrase --image-opts -c 'write -q -P 0x5a 1M 1M' \
    driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=encrypted.qcow2
refused "$PWD/encrypted.qcow2" 'it is encrypted (LUKS)' 'qemu-img convert --object secret,id=s,file=PASSPHRASE'
qemu-img create -q -f qcow2 -b encrypted.qcow2 -F qcow2 overlay.qcow2 8M 2>/dev/null ||
    qemu-img create -q -f qcow2 -u -b encrypted.qcow2 -F qcow2 overlay.qcow2 8M
refused "$PWD/overlay.qcow2" "its backing file \"$PWD/encrypted.qcow2\": it is encrypted (LUKS)"
qemu-img convert --object secret,id=s,file=passphrase --image-opts \
    driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename="$PWD/encrypted.qcow2" -O qcow2 plain.qcow2

# Images with unsupported features.
qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on data.qcow2 8M
qemu-img create -q -f qcow2 -o compression_type=zstd zstd.qcow2 8M
qemu-img create -q -f qcow2 -o extended_l2=on extended.qcow2 8M
refused "$PWD/data.qcow2" 'its data is in another file' "qemu-img convert -O qcow2 \"$PWD/data.qcow2\" NEW"
refused "$PWD/zstd.qcow2" 'its compression is zstd' "qemu-img convert -O qcow2 \"$PWD/zstd.qcow2\" NEW"
refused "$PWD/extended.qcow2" 'extended level 2 entries' "extended_l2=off \"$PWD/extended.qcow2\" NEW"

# An image of version 2 with a backing file and its format, which qemu-img writes after the shorter
# header.
qemu-img create -q -f qcow2 base.qcow2 8M
pattern base.qcow2
qemu-img create -q -f qcow2 -o compat=0.10 -b base.qcow2 -F qcow2 old.qcow2

# A relative path as target, and a qcow2 image whose name does not end in .qcow2.
make_disk "$PWD/relative.img" 8
refused relative.img 'is a relative path'
qemu-img create -q -f qcow2 named.img 8M
pattern named.img

cat >$config <<EOF
[domain.$GUEST-repaired.disk.xvdd]
format = "qcow2"
EOF
xen-virtiod check >/dev/null || fail "xen-virtiod check fails: $(xen-virtiod check 2>&1)"
make_initrd initrd /lab/scenarios/refused-images/guest.sh
name=$GUEST-repaired
run_guest 60 "$name" "$PWD/initrd" "$PWD/damaged.qcow2" "$PWD/plain.qcow2" "$PWD/old.qcow2" "$PWD/named.img"
check_nothing_mapped
for image in damaged.qcow2 plain.qcow2 old.qcow2 named.img; do
    qemu-img check -q -f qcow2 $image ||
        fail "the guest left $image damaged: $(qemu-img check $image 2>&1)"
    qemu-io -f qcow2 -c 'read -P 0x5a 1M 1M' -c 'read -P 0xa5 4M 64k' $image | tee says >/dev/null
    ! grep -q 'failed' says || fail "$image does not hold the written data: $(cat says)"
done

# Without the configuration the daemon serves the image as raw, and warns.
rm $config
start_guest "$GUEST-raw" "$PWD/initrd" "$PWD/named.img:r" || fail "xl could not create the guest"
xl destroy "$domid"
wait_gone "$domid" 20
grep -qF "\"$PWD/named.img\" is served raw, since its name does not end in .qcow2, but it begins as a qcow2" $daemon_log ||
    fail "the log does not warn of the image's name: $(tail -n 3 $daemon_log)"
