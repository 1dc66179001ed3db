# zonefs: a zone is a file. PHASE 1 makes it, 2 is another guest.
. /tests/lib.sh
append() { dd if=/tmp/pattern of="$1" bs=64k count="$2" oflag=direct,append conv=notrunc; }
size() { stat -c %s "$1"; }

case $PHASE in
1)
    dd if=/dev/urandom of=/tmp/pattern bs=64k count=16 2>/dev/null
    step "mkzonefs, mount"
    must mkzonefs "$DISK"
    must mount -t zonefs "$DISK" /mnt
    equal "conventional files" "$(ls /mnt/cnv | wc -l)" 1
    [ "$(ls /mnt/seq | wc -l)" -ge 8 ] || fail "few sequential files"
    step "sequential write"
    must append /mnt/seq/0 16
    equal "size" "$(size /mnt/seq/0)" 1048576
    must append /mnt/seq/0 4
    equal "size" "$(size /mnt/seq/0)" 1310720
    must append /mnt/seq/1 16
    cmp -n 1048576 /mnt/seq/0 /tmp/pattern || fail "seq/0 differs"
    refused 'error writing' dd if=/tmp/pattern of=/mnt/seq/0 bs=4k count=1 oflag=direct conv=notrunc
    step "conventional file in any order"
    must dd if=/tmp/pattern of=/mnt/cnv/0 bs=64k seek=9 count=4 conv=notrunc,fsync
    must dd if=/tmp/pattern of=/mnt/cnv/0 bs=64k seek=2 count=4 conv=notrunc,fsync
    step "truncate resets, truncate to the end finishes"
    must truncate -s 0 /mnt/seq/0
    equal "size" "$(size /mnt/seq/0)" 0
    must append /mnt/seq/0 2
    full=$(stat -c %b /mnt/seq/2)
    must truncate -s $((full * 512)) /mnt/seq/2
    refused 'Operation not permitted' truncate -s 4096 /mnt/seq/1
    sync
    step "remount"
    must umount /mnt
    forget_cache
    must mount -t zonefs "$DISK" /mnt
    equal "size" "$(size /mnt/seq/0)" 131072
    equal "size" "$(size /mnt/seq/1)" 1048576
    cmp /mnt/seq/1 /tmp/pattern || fail "seq/1 differs"
    dd if=/mnt/cnv/0 bs=64k skip=9 count=4 2>/dev/null | cmp -n 262144 - /tmp/pattern || fail "cnv/0 differs"
    (cd /mnt && sha256sum seq/0 seq/1 && sha256sum cnv/0) >/tmp/sums
    echo "zonefs sums: $(md5sum </tmp/sums)"
    # The sums outlive this guest in the last sequential file.
    last=$(ls /mnt/seq | sort -n | tail -n 1)
    truncate -s 4096 /tmp/sums
    must dd if=/tmp/sums of="/mnt/seq/$last" bs=4096 oflag=direct conv=notrunc
    must umount /mnt
    kernel_is_content
    ;;
2)
    step "another guest finds the same files"
    must mount -t zonefs "$DISK" /mnt
    last=$(ls /mnt/seq | sort -n | tail -n 1)
    tr -d '\000' <"/mnt/seq/$last" >/tmp/sums
    (cd /mnt && must sha256sum -c /tmp/sums) || exit 1
    dd if=/dev/urandom of=/tmp/pattern bs=64k count=4 2>/dev/null
    must append /mnt/seq/1 4
    equal "size" "$(size /mnt/seq/1)" 1310720
    must umount /mnt
    kernel_is_content
    ;;
esac
