# Sourced by every script that runs in the guest (busybox sh): saying, demanding, zones, files.
NAME=$(basename "$DISK")

step() { echo "-- $*"; }

# A guest that waits for ever says nothing by itself. Before the host's patience ends (300 s), this says
# what waits, and for the disk or for itself: with nothing in flight the disk owes no answer. A wait of
# btrfs for itself (its writeback for an active zone, which only writeback could free) is one that Linux
# 7.3.4 falls into on null_blk as well; the host is told, by status 75, to try again.
(
    sleep "${PATIENCE:-200}"
    dmesg -n 7
    echo "== still running; in flight: $(cat "/sys/block/$NAME/inflight")"
    echo w >/proc/sysrq-trigger
    sleep 2
    if [ "$(tr -d ' ' <"/sys/block/$NAME/inflight")" = 00 ] &&
        dmesg | grep -q 'out_of_line_wait_on_bit' && dmesg | grep -q 'cow_file_range.*btrfs'; then
        echo "== btrfs waits for itself, with no request in flight"
        pull-the-plug 75
    fi
) &
fail() {
    echo "FAILED: $*"
    dmesg | tail -n 15
    exit 1
}

# must COMMAND...: it has to succeed; what it says is shown only when it does not.
must() {
    "$@" >/tmp/out 2>&1 && return
    status=$?
    cat /tmp/out
    fail "status $status from: $*"
}

# refused TEXT COMMAND...: it has to fail and to say TEXT.
refused() {
    wanted=$1
    shift
    if "$@" >/tmp/out 2>&1; then fail "was not refused: $*"; fi
    grep -qF "$wanted" /tmp/out || {
        cat /tmp/out
        fail "not refused with \"$wanted\": $*"
    }
}

# equal WHAT GOT WANTED
equal() { [ "$2" = "$3" ] || fail "$1 is '$2', not '$3'"; }

queue() { cat "/sys/block/$NAME/queue/$1"; }

# One pass over the kernel's log at the end of a test in which nothing may go wrong.
kernel_is_content() {
    if dmesg | grep -E 'BUG:|WARNING:|Oops|I/O error|hung task|corrupt|checksum error' >/tmp/out; then
        cat /tmp/out
        fail "the guest's kernel complained"
    fi
}

# --- zones, by number; sizes in sectors of 512 bytes ---
zone_report() { blkzone report -o $(($1 * ZONE_SECTORS)) -c 1 "$DISK"; }
zone_state() { zone_report "$1" | sed -n 's/.*zcond: *[0-9]*(\(..\)).*/\1/p'; }
# Relative to the zone's start.
zone_written() { printf '%d\n' "$(zone_report "$1" | sed -n 's/.*wptr \(0x[0-9a-f]*\).*/\1/p')"; }
zone_do() { blkzone "$1" -o $(($2 * ZONE_SECTORS)) -c 1 "$DISK"; }

# zone_is NUMBER STATE SECTORS-WRITTEN
zone_is() {
    equal "state of zone $1" "$(zone_state "$1")" "$2"
    equal "write pointer of zone $1" "$(zone_written "$1")" "$3"
}

# write_at SECTOR SECTORS: bytes that tell their own place, past the page cache.
write_at() {
    dd if=/tmp/pattern bs=4096 count=$(($2 / 8)) skip=$(($1 / 8 % 256)) 2>/dev/null |
        dd of="$DISK" bs=$(($2 * 512)) seek=$(($1 * 512)) oflag=direct,seek_bytes iflag=fullblock conv=notrunc
}
read_at() { dd if="$DISK" bs=4096 skip=$(($1 / 8)) count=$(($2 / 8)) iflag=direct 2>/dev/null; }
same_at() {
    [ "$(read_at "$1" "$2" | md5sum)" = \
        "$(dd if=/tmp/pattern bs=4096 count=$(($2 / 8)) skip=$(($1 / 8 % 256)) 2>/dev/null | md5sum)" ] ||
        fail "$2 sectors at $1 do not read back as written"
}
zeroes_at() {
    [ "$(read_at "$1" "$2" | tr -d '\000' | wc -c)" = 0 ] || fail "$2 sectors at $1 are not zeroes"
    [ "$(read_at "$1" "$2" | wc -c)" = $(($2 * 512)) ] || fail "$2 sectors at $1 cannot be read"
}

# --- files ---
# make_files DIR MIB: small ones, a big one, one rewritten in the middle; their checksums in DIR/SUMS.
make_files() {
    mkdir -p "$1/tree"
    dd if=/dev/urandom of="$1/big" bs=1M count="$2" 2>/dev/null
    i=0
    while [ $i -lt 200 ]; do
        dd if="$1/big" of="$1/tree/$i" bs=1000 skip=$i count=$((1 + i % 37)) 2>/dev/null
        i=$((i + 1))
    done
    cp "$1/big" "$1/patched"
    dd if=/dev/urandom of="$1/patched" bs=4096 seek=100 count=50 conv=notrunc 2>/dev/null
    (cd "$1" && find . -type f ! -name SUMS | sort | xargs sha256sum >SUMS)
    sync
}
verify_files() {
    (cd "$1" && sha256sum -c SUMS >/tmp/out 2>&1) || {
        grep -v ': OK' /tmp/out
        fail "files in $1 have changed"
    }
}
# Nothing of a file may come from the page cache.
forget_cache() { echo 3 >/proc/sys/vm/drop_caches; }
