# fio writes and verifies, with many requests in flight, while the daemon is killed and started again.
. /tests/lib.sh
KILLS=20

# Requests that the disk has answered.
answered() { awk '{ print $1 + $5 + $9 }' "/sys/block/$NAME/stat"; }

# More answers than there can be in flight: the daemon that answers is the new one.
await_progress() {
    before=$(answered)
    tick=0
    while [ $(($(answered) - before)) -lt 300 ]; do
        tick=$((tick + 1))
        [ $tick -lt 600 ] || fail "no progress after kill $kill: in flight $(cat "/sys/block/$NAME/inflight")"
        sleep 0.1
    done
}

step "fio, verified, and $KILLS kills"
(
    while [ ! -e /tmp/enough ]; do
        fio --name=killed --filename="$DISK" --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --rwmixwrite=70 \
            --bsrange=4k-32k --size=24m --numjobs=2 --offset_increment=64m --thread --fsync=64 \
            --verify=crc32c --verify_backlog=64 --verify_fatal=1 --group_reporting >/tmp/fio 2>&1 || exit 1
        echo pass >>/tmp/passes
    done
    echo done >>/tmp/passes
) &
kill=0
while [ $kill -lt $KILLS ]; do
    await_progress
    kill=$((kill + 1))
    host-call kill || fail "the host could not kill and start the daemon"
done
await_progress
touch /tmp/enough
wait $! || {
    cat /tmp/fio
    fail "fio"
}
equal "last line of the passes" "$(tail -n 1 /tmp/passes)" done
echo "$kill kills, $(grep -c pass /tmp/passes) passes of fio, $(answered) requests"

step "nothing was seen of it"
kernel_is_content
