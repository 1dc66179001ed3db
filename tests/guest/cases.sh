# The guest cases. Each is a function case_NAME, with '_' for '-' and 'v' before a kernel's number;
# describe it in CASES. What they call stands in run.

CASES=(
    "blkzone-7.3        every zone command, every refused transition, kept over a restart"
    "blkzone-6.12       the same"
    "btrfs-7.3          zoned btrfs: subvolumes, balance, scrub, restarts, plug pulled; then read-only"
    "btrfs-6.12         the same, 512-byte blocks, four queues"
    "zonefs-7.3         zonefs: sequential write, truncate, remount, restart"
    "zonefs-6.12        the same"
    "xfs-7.3            zoned XFS with conventional zones, zones collected, restarts, plug pulled"
    "f2fs-7.3           f2fs with conventional zones (generic kernel), restarts, plug pulled"
    "fio-7.3            fio zbd verify: psync, libaio, io_uring; depth 1 and 32; 1 and 4 jobs"
    "fio-6.12           the same, aes-128-xts, one queue"
    "dm-crypt-7.3       LUKS2 in the guest on top, btrfs on that"
    "reads-image-7.3    dm-crypt in the guest, with a zone's key, reads what lies in the image"
    "plain-7.3          no zones, stock front-end: ext4, fio, discard, zeroes, daemon restart"
    "plain-6.12         the same"
    "killed-7.3         no zones, stock front-end: fio verifies while the daemon is killed twenty times"
    "zones-hidden       a zoned disk behind a front-end that hides zones refuses I/O and says why"
)

blkzone() {
    disk_create --size 128M --zone-size 8M --zone-capacity 6M --conventional 2 --max-open 3 --max-active 4
    disk_serve
    guest blkzone --kernel "$1"
    disk_restart
    guest blkzone-after --kernel "$1"
    disk_stop
}
case_blkzone_v7.3() { blkzone 7.3; }
case_blkzone_v6.12() { blkzone 6.12; }

# three_phases SCRIPT KERNEL: made; found by another guest from another daemon, whose plug is pulled;
# found by a third from the same daemon, which then ends cleanly.
three_phases() {
    disk_serve
    guest "$1" --kernel "$2" --env PHASE=1
    disk_restart
    guest "$1" --kernel "$2" --env PHASE=2
    guest "$1" --kernel "$2" --env PHASE=3
    disk_stop
}

case_btrfs_v7.3() {
    disk_create --for btrfs --size 2G
    three_phases btrfs 7.3
    disk_serve --read-only
    guest read-only --kernel 7.3
    disk_stop
}
case_btrfs_v6.12() {
    disk_create --for btrfs --size 2G --block-size 512
    QUEUES=4
    three_phases btrfs 6.12
}

zonefs() {
    disk_create --for zonefs --size 256M --zone-size 8M --conventional 2
    disk_serve
    guest zonefs --kernel "$1" --env PHASE=1
    disk_restart
    guest zonefs --kernel "$1" --env PHASE=2
    disk_stop
}
case_zonefs_v7.3() { zonefs 7.3; }
case_zonefs_v6.12() { zonefs 6.12; }

case_xfs_v7.3() {
    disk_create --for xfs --size 2G
    three_phases xfs 7.3
}
case_f2fs_v7.3() {
    disk_create --for f2fs --size 2G
    three_phases f2fs 7.3-generic
}

case_fio_v7.3() {
    disk_create --size 1G --zone-size 32M --zone-capacity 24M
    QUEUES=4
    disk_serve
    guest fio --kernel 7.3 --with-fio --smp 2
    disk_stop
}
case_fio_v6.12() {
    disk_create --size 1G --zone-size 32M --cipher aes-128-xts
    disk_serve
    guest fio --kernel 6.12 --with-fio
    disk_stop
}

case_dm_crypt_v7.3() {
    disk_create --for btrfs --size 2G
    disk_serve
    guest dm-crypt --kernel 7.3 --memory 1024
    disk_stop
}

# reads_image KERNEL OPTION...: the guest writes to our disk and sees its image as a second disk.
reads_image() {
    local kernel=$1 reader=() zone tables=()
    shift
    "$REPO/tests/vectors/fetch"
    disk_create --size 128M --zone-size 8M --zone-capacity 6M --conventional 2 "$@"
    reader=("$CACHE/openssl-venv/bin/python" "$REPO/tests/reader/zvread.py" "$STATE/disk.img")
    reader+=(--key-file "$STATE/key" --dm-table DEVICE)
    for zone in 0 3; do
        tables+=(--env "TABLE_$zone=$("${reader[@]}" --zone "$zone")")
    done
    disk_serve
    "$REPO/qemu/run" --socket "$SOCKET" --timeout "$BOOT_TIMEOUT" --kernel "$kernel" "${tables[@]}" \
        --file "$HERE/in:tests" --script "$REPO/tests/reader/dm-crypt.sh" -- \
        -drive "if=none,id=image,file=$STATE/disk.img,format=raw,read-only=on,file.locking=off" \
        -device virtio-blk-pci,drive=image,serial=image
    disk_stop
}
case_reads_image_v7.3() {
    reads_image 7.3
    rm "$STATE/disk.img" "$STATE/key"
    reads_image 7.3 --block-size 512 --cipher aes-128-xts
}

plain() {
    disk_create --plain --size 512M
    QUEUES=2
    disk_serve
    local stock=(--front-end blk-pci --reconnect-ms 200 --with-fio --kernel "$1")
    guest plain "${stock[@]}" --env PHASE=1 --on-call "$HERE/on-call"
    disk_restart
    guest plain "${stock[@]}" --env PHASE=2
    disk_stop
}
case_plain_v7.3() { plain 7.3; }
case_plain_v6.12() { plain 6.12; }

case_killed_v7.3() {
    disk_create --plain --size 256M
    QUEUES=2
    disk_serve
    guest killed --front-end blk-pci --reconnect-ms 50 --with-fio --kernel 7.3 --on-call "$HERE/on-call"
    disk_stop
    if grep -qi panicked "$STATE/daemon.log"; then
        note "the daemon panicked:"
        cat "$STATE/daemon.log"
        return 1
    fi
}

case_zones_hidden() {
    disk_create --size 512M
    disk_serve
    guest refused --kernel 7.3 --front-end blk-pci
    disk_stop
    grep -qi 'zoned' "$STATE/daemon.log" || {
        note "the daemon's log does not say that the front-end lacks VIRTIO_BLK_F_ZONED:"
        cat "$STATE/daemon.log"
        return 1
    }
}
