wait_for "the disks" 20 test -b /dev/vda -a -b /dev/vdb -a -b /dev/vdc -a -b /dev/vdd
dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null

# part OFFSET LENGTH: hashes a part of the written data; both in MiB.
part() {
    dd if=/tmp/data bs=1M skip="$1" count="$2" 2>/dev/null | sha256sum
}

# holds DISK OFFSET LENGTH HASH: checks the hash of a part of the disk, in MiB, past the page cache.
holds() {
    found=$(dd if="/dev/$1" bs=1M skip="$2" count="$3" iflag=direct 2>/dev/null | sha256sum)
    if [ "$found" != "$4" ]; then
        echo "lab: $3 MiB at $2 MiB of $1 are $found, not $4"
        return 1
    fi
}

zeros=$(dd if=/dev/zero bs=1M count=2 2>/dev/null | sha256sum)
for disk in vda vdb vdc vdd; do
    discards=$(cat /sys/block/$disk/queue/discard_max_bytes)
    echo "lab: $disk-discard $discards"
    [ "$(cat /sys/block/$disk/queue/write_zeroes_max_bytes)" -gt 0 ]
    dd if=/tmp/data of=/dev/$disk bs=1M conv=fsync 2>/dev/null
    probe zero-out /dev/$disk $((2 << 20)) $((2 << 20))
    if [ "$discards" -gt 0 ]; then
        blkdiscard -o $((8 << 20)) -l $((4 << 20)) /dev/$disk
    fi
    echo 3 >/proc/sys/vm/drop_caches
    holds $disk 0 2 "$(part 0 2)"
    holds $disk 2 2 "$zeros"
    holds $disk 4 4 "$(part 4 4)"
    holds $disk 12 4 "$(part 12 4)"
done

# Make a file system and trim it, if the disk offers discard. vdc stays as it is: Dom0 checks it.
for disk in vdb vdd; do
    /usr/sbin/mke2fs -q -t ext4 /dev/$disk
    mount -t ext4 /dev/$disk /mnt
    dd if=/tmp/data of=/mnt/file bs=1M count=8 conv=fsync 2>/dev/null
    rm /mnt/file
    [ "$(cat /sys/block/$disk/queue/discard_max_bytes)" = 0 ] || fstrim /mnt
    umount /mnt
done
! dmesg | grep -i 'I/O error' || exit 1
