# What qemu/demo runs in its guests. PHASE is write, then verify (in another guest).
set -e
tell() { echo "* $*"; }
try() {
    "$@" >/tmp/out 2>&1 || {
        cat /tmp/out
        echo "FAILED: $*"
        exit 1
    }
}

summary() {
    blkzone report "$DISK" | sed 's/.*zcond: *[0-9]*(\(..\)).*/\1/' | sort | uniq -c |
        sed 's/em/empty/; s/oi/open/; s/oe/open explicitly/; s/cl/closed/; s/fu/full/; s/nw/conventional/' |
        awk '{ n = $1; $1 = ""; printf "%s%d%s", (NR > 1 ? ", " : ""), n, $0 } END { print " zones" }'
}

write() {
    tell "Linux $(uname -r) sees $DISK: $(cat /sys/block/vda/queue/zoned)," \
        "$(cat /sys/block/vda/queue/nr_zones) zones of $(($(cat /sys/block/vda/queue/chunk_sectors) / 2048)) MiB," \
        "zone append up to $(($(cat /sys/block/vda/queue/zone_append_max_bytes) / 1024)) KiB"
    tell "fio on the bare zones: sequential writes, 32 in flight, verified by checksums"
    zone=$(($(cat /sys/block/vda/queue/chunk_sectors) * 512))
    for engine in libaio io_uring; do
        fio --name=zbd --filename="$DISK" --zonemode=zbd --zonesize=$zone --direct=1 --thread --rw=write \
            --ioengine=$engine --iodepth=32 --bs=64k --size=$((2 * zone)) --io_size=64m --verify=crc32c \
            --verify_fatal=1 >/tmp/fio 2>&1 || {
            cat /tmp/fio
            exit 1
        }
        sed -n "s/^ *\(READ\|WRITE\): bw=\([^ ]*\) .*io=\([^ ]*\) .*/  $engine \1 \3 at \2/p" /tmp/fio
    done
    try blkzone reset "$DISK"
    tell "mkfs.btrfs, mount, write"
    try mkfs.btrfs -q "$DISK"
    try mount -t btrfs "$DISK" /mnt
    dmesg | sed -n 's/.*BTRFS info[^:]*: \(host-managed.*\|zoned mode.*\)/  \1/p'
    yes "$MARKER" | head -n "$COPIES" >/mnt/marker
    dd if=/dev/urandom of=/mnt/random bs=1M count=32 2>/dev/null
    try btrfs subvolume create /mnt/sub
    cp /mnt/random /mnt/sub/copy
    (cd /mnt && sha256sum marker random sub/copy >SUMS)
    try umount /mnt
    try mount -t btrfs "$DISK" /mnt
    tell "remounted; checksums of all files, and btrfs's own scrub"
    (cd /mnt && sha256sum -c SUMS) | sed 's/^/  /'
    try btrfs scrub start -B /mnt
    sed -n 's/^\(Error summary.*\)/  \1/p' /tmp/out
    try umount /mnt
    tell "$(summary)"
}

verify() {
    try mount -t btrfs "$DISK" /mnt
    (cd /mnt && sha256sum -c SUMS) | sed 's/^/  /'
    # The status of a pipe is its last command's; this one has to be seen.
    (cd /mnt && try sha256sum -c SUMS)
    [ "$(grep -c "$MARKER" /mnt/marker)" = "$COPIES" ]
    try umount /mnt
    tell "$(summary)"
}

$PHASE
