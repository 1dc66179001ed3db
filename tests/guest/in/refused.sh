# A zoned disk behind a front-end that hides its zones: it must not serve as an ordinary disk.
. /tests/lib.sh
[ -b "$DISK" ] || exit 0
refused '' dd if=/dev/zero of="$DISK" bs=4096 count=1 oflag=direct conv=notrunc
refused '' dd if="$DISK" of=/tmp/x bs=4096 count=1 iflag=direct
