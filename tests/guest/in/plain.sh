# A disk without zones, through QEMU's stock front-end. PHASE 1 makes and uses it, 2 is another guest.
. /tests/lib.sh
MIB=1048576

case $PHASE in
1)
    step "what the guest sees"
    equal "model" "$(queue zoned)" none
    [ "$(queue discard_max_bytes)" -gt 0 ] || fail "no discard"
    [ "$(queue write_zeroes_max_bytes)" -gt 0 ] || fail "no write zeroes"

    step "discard and write zeroes on the bare disk"
    dd if=/dev/urandom of=/tmp/pattern bs=1M count=8 2>/dev/null
    must dd if=/tmp/pattern of="$DISK" bs=1M seek=64 oflag=direct conv=notrunc
    must blkdiscard -z -o $((66 * MIB)) -l $((1 * MIB)) "$DISK"
    must fallocate -z -n -o $((69 * MIB)) -l 8192 "$DISK"
    must blkdiscard -o $((71 * MIB)) -l $((1 * MIB)) "$DISK"
    forget_cache
    piece() { dd if="$DISK" bs=4096 skip=$1 count=$2 iflag=direct 2>/dev/null; }
    [ "$(piece 16896 256 | tr -d '\000' | wc -c)" = 0 ] || fail "blkdiscard -z left data"
    [ "$(piece 17664 2 | tr -d '\000' | wc -c)" = 0 ] || fail "fallocate -z left data"
    piece 16384 512 | cmp -n $((2 * MIB)) - /tmp/pattern || fail "data before the zeroes has changed"
    dd if=/tmp/pattern bs=4096 skip=768 count=512 2>/dev/null >/tmp/want
    piece 17152 512 | cmp - /tmp/want || fail "data between the zeroes has changed"
    dd if=/tmp/pattern bs=4096 skip=1282 count=510 2>/dev/null >/tmp/want
    piece 17666 510 | cmp - /tmp/want || fail "data after the zeroes has changed"

    step "fio, verified"
    for engine in psync libaio io_uring; do
        fio --name=$engine --filename="$DISK" --direct=1 --ioengine=$engine --iodepth=16 --rw=randwrite \
            --bsrange=4k-64k --size=64m --io_size=24m --numjobs=2 --offset_increment=64m --thread \
            --verify=crc32c --verify_fatal=1 --group_reporting >/tmp/fio 2>&1 || {
            cat /tmp/fio
            fail "fio $engine"
        }
        sed -n "s/^ *WRITE: bw=\([^,]*\),.*/$engine: wrote at \1/p" /tmp/fio
    done

    step "ext4, fstrim"
    must mkfs.ext4 -q -F -E nodiscard "$DISK"
    must mount -t ext4 "$DISK" /mnt
    make_files /mnt/one 24
    make_files /mnt/two 16
    rm -r /mnt/two
    sync
    must fstrim -v /mnt
    cat /tmp/out
    forget_cache
    verify_files /mnt/one

    step "the daemon is restarted while the guest is idle"
    sync
    sleep 1
    host-call restart || fail "the host could not restart the daemon"
    forget_cache
    verify_files /mnt/one
    make_files /mnt/three 8
    forget_cache
    verify_files /mnt/three
    must umount /mnt
    must e2fsck -fn "$DISK"
    kernel_is_content
    ;;
2)
    step "another guest finds everything"
    must mount -t ext4 "$DISK" /mnt
    verify_files /mnt/one
    verify_files /mnt/three
    must umount /mnt
    must e2fsck -fn "$DISK"
    kernel_is_content
    ;;
esac
