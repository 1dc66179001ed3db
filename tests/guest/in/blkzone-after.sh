# What blkzone.sh left, seen by another guest from another daemon.
. /tests/lib.sh
ZONE_SECTORS=$(queue chunk_sectors)
# The pattern lies in the second conventional zone.
dd if="$DISK" of=/tmp/pattern bs=1M skip=8 count=4 2>/dev/null

step "states and write pointers are kept"
zone_is 2 cl 64
equal "write pointer of zone 3" "$(zone_written 3)" 128
equal "write pointer of zone 4" "$(zone_written 4)" 0
equal "zone 5" "$(zone_state 5)" fu
equal "zone 6" "$(zone_state 6)" em
[ "$(blkzone report "$DISK" | grep -cE '\((oi|oe)\)')" -le 3 ] || fail "more open than promised"

step "data is kept"
same_at 800 80
same_at $((2 * ZONE_SECTORS)) 64
same_at $((3 * ZONE_SECTORS)) 128
zeroes_at $((5 * ZONE_SECTORS)) 64

step "writing goes on where it stopped"
must write_at $((2 * ZONE_SECTORS + 64)) 8
zone_is 2 oi 72
refused error write_at $((3 * ZONE_SECTORS)) 8
# After an error Linux accepts no write to the zone before it has seen a report of it.
equal "write pointer of zone 3" "$(zone_written 3)" 128
must write_at $((3 * ZONE_SECTORS + 128)) 8
same_at $((3 * ZONE_SECTORS)) 136
