# Every zone command and every transition that must be refused, on a disk of 16 zones: two
# conventional, 8 MiB each of which 6 MiB can be written, 3 may be open and 4 active.
. /tests/lib.sh

# The refusals that are wanted here need not fill the console.
dmesg -n 1
ZONE_SECTORS=$(queue chunk_sectors)
CAPACITY=12288
dd if=/dev/urandom of=/tmp/pattern bs=4096 count=1024 2>/dev/null

step "what the guest sees"
equal "model" "$(queue zoned)" host-managed
equal "zone size" "$ZONE_SECTORS" 16384
equal "zones" "$(queue nr_zones)" 16
equal "max open" "$(queue max_open_zones)" 3
equal "max active" "$(queue max_active_zones)" 4
equal "block size" "$(queue logical_block_size)" 4096
equal "write granularity" "$(queue zone_write_granularity)" 4096
[ "$(queue zone_append_max_bytes)" -ge 4096 ] || fail "no zone append"
equal "conventional zones" "$(blkzone report "$DISK" | grep -c CONVENTIONAL)" 2
equal "sequential zones" "$(blkzone report "$DISK" | grep -c 'SEQ_WRITE_REQUIRED')" 14
equal "capacity of all" "$(blkzone capacity "$DISK")" $(printf '0x%09x' $((2 * ZONE_SECTORS + 14 * CAPACITY)))
equal "empty zones" "$(blkzone report "$DISK" | grep -c '(em)')" 14

step "conventional zones: written in any order, no zone command"
must write_at 800 80
must write_at 0 80
must write_at $((ZONE_SECTORS + 1600)) 8
same_at 800 80
same_at 0 80
same_at $((ZONE_SECTORS + 1600)) 8
must write_at 800 80
same_at 800 80
for command in open close finish reset; do
    refused 'Input/output error' zone_do $command 0
done
equal "state of zone 0" "$(zone_state 0)" nw

step "sequential write, read, and what may not be"
START=$((2 * ZONE_SECTORS))
zeroes_at $START 64
must write_at $START 64
zone_is 2 oi 64
same_at $START 64
zeroes_at $((START + 64)) 64
refused error write_at $START 8
zone_is 2 oi 64
refused error write_at $((START + 128)) 8
zone_is 2 oi 64
refused 'Invalid argument' xfs_io -d -c "pwrite $(((START + 64) * 512)) 512" "$DISK"
zone_is 2 oi 64
must write_at $((START + 64)) 8
zone_is 2 oi 72
same_at $((START + 64)) 8

step "open, close, finish, reset in every allowed order"
must zone_do open 2
zone_is 2 oe 72
must zone_do open 2
must write_at $((START + 72)) 8
zone_is 2 oe 80
must zone_do close 2
zone_is 2 cl 80
must zone_do close 2
zone_is 2 cl 80
must zone_do open 2
zone_is 2 oe 80
must zone_do close 2
must write_at $((START + 80)) 8
zone_is 2 oi 88
must zone_do close 2
zone_is 2 cl 88
must zone_do finish 2
equal "state" "$(zone_state 2)" fu
must zone_do finish 2
equal "state" "$(zone_state 2)" fu
same_at $START 64
zeroes_at $((START + 96)) 64
must zone_do reset 2
zone_is 2 em 0
zeroes_at $START 64
must zone_do reset 2
zone_is 2 em 0
must zone_do open 2
zone_is 2 oe 0
must zone_do close 2
zone_is 2 em 0
must zone_do finish 2
equal "finished from empty" "$(zone_state 2)" fu
zeroes_at $START 64
must zone_do reset 2
must zone_do open 2
must zone_do finish 2
equal "finished from open" "$(zone_state 2)" fu
must zone_do reset 2

step "refused transitions change nothing"
refused 'Input/output error' zone_do close 2
zone_is 2 em 0
must zone_do finish 2
refused 'Input/output error' zone_do open 2
refused 'Input/output error' zone_do close 2
equal "state" "$(zone_state 2)" fu
refused error write_at $START 8
equal "state" "$(zone_state 2)" fu
must zone_do reset 2

step "a zone written to its capacity is full; nothing is written past it"
at=$START
while [ $at -lt $((START + CAPACITY)) ]; do
    must write_at $at 1024
    at=$((at + 1024))
done
equal "state" "$(zone_state 2)" fu
same_at $((START + CAPACITY - 1024)) 1024
zeroes_at $((START + CAPACITY)) 1024
refused error write_at $((START + CAPACITY)) 8
must zone_do reset 2

step "open limit: implicitly open zones give way, explicitly open ones do not"
for z in 2 3 4; do must write_at $((z * ZONE_SECTORS)) 8; done
must write_at $((5 * ZONE_SECTORS)) 8
equal "open zones" "$(blkzone report "$DISK" | grep -c '(oi)')" 3
equal "the least recently used one" "$(zone_state 2)" cl
zone_is 2 cl 8
must write_at $((2 * ZONE_SECTORS + 8)) 8
equal "zone 2 again" "$(zone_state 2)" oi
equal "open zones" "$(blkzone report "$DISK" | grep -c '(oi)')" 3
must zone_do reset 5
for z in 2 3 4; do must zone_do open $z; done
refused 'Too many references' zone_do open 5
refused 'references' write_at $((5 * ZONE_SECTORS)) 8
zone_is 5 em 0
must zone_do close 4
must zone_do open 5

step "active limit: closed zones count"
equal "active zones" "$(blkzone report "$DISK" | grep -cE '\((oi|oe|cl)\)')" 4
refused 'too large' zone_do open 6
refused 'too large' write_at $((6 * ZONE_SECTORS)) 8
zone_is 6 em 0
must zone_do close 5
must zone_do finish 4
must write_at $((6 * ZONE_SECTORS)) 8
zone_is 6 oi 8

step "many zones at once"
must blkzone reset "$DISK"
equal "empty zones" "$(blkzone report "$DISK" | grep -c '(em)')" 14
same_at 800 80
must blkzone open -o $((7 * ZONE_SECTORS)) -c 3 "$DISK"
equal "open zones" "$(blkzone report "$DISK" | grep -c '(oe)')" 3
must blkzone close -o $((7 * ZONE_SECTORS)) -c 3 "$DISK"
must blkzone finish -o $((7 * ZONE_SECTORS)) -l $((3 * ZONE_SECTORS)) "$DISK"
equal "full zones" "$(blkzone report "$DISK" | grep -c '(fu)')" 3
must blkzone reset -o $((8 * ZONE_SECTORS)) -c 2 "$DISK"
equal "full zones" "$(blkzone report "$DISK" | grep -c '(fu)')" 1

step "left for the next guest: closed, open, full, data"
must blkzone reset "$DISK"
must write_at $START 64
must zone_do close 2
must write_at $((3 * ZONE_SECTORS)) 128
must zone_do open 4
must zone_do finish 5
cp /tmp/pattern /tmp/p
dd if=/tmp/pattern of="$DISK" bs=1M seek=8 count=4 oflag=direct conv=notrunc 2>/dev/null
sync
