# fio on the disks whose serial numbers are $DISKS, in turn; tests/bench/guest reads the lines that begin with "cell".
# A workload is NAME:RW:BLOCK-SIZE:DEPTH. Sequential writes come last: after them zones are written in part only.

# disk_of SERIAL: its device. The order in which drivers find disks is nobody's promise.
disk_of() { dirname "$(grep -lx "$1" /sys/block/vd*/serial)" | sed 's,.*/,/dev/,'; }
zoned() { [ "$(cat "/sys/block/${1#/dev/}/queue/zoned")" = host-managed ]; }

# run_fio RW BLOCK-SIZE DEPTH OPTION...: all disks, one after the other, by one fio, whose start is slow in an
# emulated guest; its terse lines go to /tmp/fio.
run_fio() {
    rw=$1 block=$2 depth=$3
    shift 3
    set -- --rw="$rw" --bs="$block" --iodepth="$depth" --direct=1 --ioengine=io_uring --thread --norandommap \
        --gtod_reduce=1 --output-format=terse --terse-version=3 "$@"
    for disk in $DISKS; do
        device=$(disk_of "$disk")
        # Zones are written in order only.
        if [ "$rw" = randwrite ] && zoned "$device"; then continue; fi
        set -- "$@" --name="$disk" --filename="$device" --stonewall
        # A zone is reset when it is written anew. Readers take the whole disk, which was filled.
        if [ "$rw" = write ] && zoned "$device"; then set -- "$@" --zonemode=zbd; fi
    done
    if ! fio "$@" >/tmp/fio 2>&1; then
        cat /tmp/fio
        exit 1
    fi
}

for disk in $DISKS; do
    # The same for all, and none of them needs one: the kernel itself keeps writes to a zone in order.
    echo none >"/sys/block/$(basename "$(disk_of "$disk")")/queue/scheduler"
done
run_fio write 128k 16
echo "filled: $DISKS"
for workload in $WORKLOADS; do
    IFS=: read -r name rw block depth <<END
$workload
END
    # Where fio's terse line has the kilobytes a second; requests a second come next.
    case $rw in *read) field=7 ;; *) field=48 ;; esac
    for round in $(seq "$ROUNDS"); do
        run_fio "$rw" "$block" "$depth" --time_based --runtime="$SECONDS_EACH"
        awk -F';' -v name="$name" -v round="$round" -v field="$field" \
            '/^3;/ { print "cell", name, round, $3, $field, $(field + 1) }' /tmp/fio
        # Nobody is always first.
        DISKS="${DISKS#* } ${DISKS%% *}"
    done
done
