# Starting and ending zonevault serve. $STATE is a directory for its pid, status and log; $SOCKET and
# $DAEMON (the command with its arguments) have to be set. Works from any process, not the parent alone.

# Seconds for the daemon to listen, and to end after SIGTERM.
DAEMON_PATIENCE=15

daemon_start() {
    local tick
    rm -f "$STATE/daemon.status" "$STATE/daemon.pid"
    (
        set +e
        "${DAEMON[@]}" >>"$STATE/daemon.log" 2>&1 </dev/null 3>&- 4>&- &
        echo $! >"$STATE/daemon.pid"
        wait $!
        echo $? >"$STATE/daemon.status"
    ) &
    for ((tick = 0; tick < DAEMON_PATIENCE * 20; tick++)); do
        if [ -S "$SOCKET" ]; then return 0; fi
        if [ -e "$STATE/daemon.status" ]; then break; fi
        sleep 0.05
    done
    note "zonevault serve did not start; its log ends:"
    tail -n 5 "$STATE/daemon.log" >&2
    return 1
}

# daemon_stop: SIGTERM; fails unless the daemon ends by itself, with status 0.
daemon_stop() {
    local tick pid
    pid=$(cat "$STATE/daemon.pid")
    kill -TERM "$pid" 2>/dev/null || true
    for ((tick = 0; tick < DAEMON_PATIENCE * 20; tick++)); do
        if [ -e "$STATE/daemon.status" ]; then
            [ "$(cat "$STATE/daemon.status")" = 0 ] && return 0
            note "zonevault serve ended with status $(cat "$STATE/daemon.status"); its log ends:"
            tail -n 5 "$STATE/daemon.log" >&2
            return 1
        fi
        sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || true
    note "zonevault serve did not end within $DAEMON_PATIENCE s of SIGTERM and was killed"
    return 1
}

# daemon_abandon: whatever state it is in, it is gone afterwards.
daemon_abandon() {
    if [ -e "$STATE/daemon.pid" ] && [ ! -e "$STATE/daemon.status" ]; then
        kill -KILL "$(cat "$STATE/daemon.pid")" 2>/dev/null || true
    fi
}
