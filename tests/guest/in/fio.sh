# fio on the zones: written and verified with every engine, shallow and deep, by one and by four jobs.
. /tests/lib.sh
ZONE=$(($(queue chunk_sectors) * 512))

run_fio() {
    name=$1
    shift
    must blkzone reset "$DISK"
    if ! fio --name="$name" --filename="$DISK" --zonemode=zbd --zonesize=$ZONE --direct=1 --group_reporting \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --thread "$@" >/tmp/fio 2>&1; then
        cat /tmp/fio
        fail "fio $name"
    fi
    echo "$name: $(sed -n 's/^ *\(WRITE\|READ\): bw=\([^,]*\),.*io=\([^ ]*\) .*/\1 \3 at \2/p' /tmp/fio | tr '\n' ' ')"
}

step "sequential writes, verified"
for engine in psync libaio io_uring; do
    for depth in 1 32; do
        # A synchronous engine has one request in flight whatever it is asked for.
        if [ $engine = psync ] && [ $depth = 32 ]; then continue; fi
        for jobs in 1 4; do
            run_fio "$engine-depth$depth-jobs$jobs" --ioengine=$engine --iodepth=$depth --numjobs=$jobs \
                --rw=write --bs=32k --size=$((2 * ZONE)) --offset_increment=$((2 * ZONE)) --io_size=$((48 / jobs))m
        done
    done
done

step "writes to zones in random order, verified"
for engine in libaio io_uring; do
    run_fio "random-$engine" --ioengine=$engine --iodepth=32 --numjobs=4 --rw=randwrite --bs=16k --size=$((4 * ZONE)) \
        --offset_increment=$((4 * ZONE)) --io_size=8m --max_open_zones=8
done

step "mixed sizes"
run_fio mixed --ioengine=io_uring --iodepth=16 --numjobs=2 --rw=write --bsrange=4k-1m --size=$((2 * ZONE)) \
    --offset_increment=$((2 * ZONE)) --io_size=24m
kernel_is_content
