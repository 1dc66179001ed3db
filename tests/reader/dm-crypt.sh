# dm-crypt reads the image: the guest writes through our disk ($DISK) and reads the image itself, a
# second, read-only disk, through dm-crypt with a zone's key. TABLE_0 and TABLE_3 are dmsetup's lines.
. /tests/lib.sh

ZONE_SECTORS=$(queue chunk_sectors)
for candidate in /sys/block/vd*; do
    if [ "$(cat "$candidate/serial")" = image ]; then IMAGE=/dev/$(basename "$candidate"); fi
done
[ -n "$IMAGE" ] || fail "no disk with the serial image"

# check ZONE MIB TABLE: writes the first so many MiB of a zone and finds them again.
check() {
    step "zone $1: write $2 MiB, read them with dm-crypt"
    dd if=/dev/urandom of=/tmp/plain bs=1M count="$2" 2>/dev/null
    must dd if=/tmp/plain of="$DISK" bs=256k seek=$(($1 * ZONE_SECTORS * 512)) oflag=direct,seek_bytes conv=notrunc
    must dmsetup create --readonly --table "$(echo "$3" | sed "s|DEVICE|$IMAGE|")" "zone$1"
    must dmsetup mknodes # there is no udev
    must dd if="/dev/mapper/zone$1" of=/tmp/read bs=1M count="$2" iflag=direct
    must cmp /tmp/plain /tmp/read
    # Without dm-crypt something else lies there.
    start=$(echo "$3" | cut -d' ' -f8)
    must dd if="$IMAGE" of=/tmp/read bs=512 skip="$start" count=$(($2 * 2048)) iflag=direct
    if cmp -s /tmp/plain /tmp/read; then fail "zone $1 is not encrypted"; fi
    must dmsetup remove "zone$1"
}
check 0 8 "$TABLE_0"
check 3 3 "$TABLE_3"
kernel_is_content
