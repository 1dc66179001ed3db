# Sourced by every script of qemu/ and tests/guest/: where things are, how to speak, how to fail.
set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C.UTF-8

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=$(realpath -m "${ZONEVAULT_CACHE:-$REPO/.cache}")
PROGRAM=$(basename "$0")

say() { printf '%s\n' "$*"; }
note() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; }
die() {
    note "$*"
    exit 1
}

# host_tools COMMAND:PACKAGE... installs the packages whose command this machine lacks.
host_tools() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        die "missing packages; as root: apt-get install ${missing[*]}"
    fi
    note "installing ${missing[*]}"
    env -u APT_CONFIG DEBIAN_FRONTEND=noninteractive bash -c '
        apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@"' \
        install "${missing[@]}" >"$CACHE/apt-install.log" 2>&1 </dev/null ||
        die "apt-get could not install ${missing[*]}; see $CACHE/apt-install.log"
}

# zonevault_binary prints the path of a freshly built daemon ($ZONEVAULT overrides it).
zonevault_binary() {
    if [ -n "${ZONEVAULT:-}" ]; then
        [ -x "$ZONEVAULT" ] || die "\$ZONEVAULT is $ZONEVAULT, which cannot be run"
        realpath "$ZONEVAULT"
        return
    fi
    "$REPO/qemu/prepare" --quiet rust >&2
    local cargo=cargo
    if [ -x "$CACHE/rust/cargo" ]; then cargo=$CACHE/rust/cargo; fi
    (cd "$REPO" && "$cargo" build --release --quiet --bin zonevault) >&2 ||
        die "cargo build --release failed"
    local target
    target=$(cd "$REPO" && realpath -m "${CARGO_TARGET_DIR:-target}")
    echo "$target/release/zonevault"
}

# stop_process PID SECONDS: TERM, then KILL when it has not ended by then. Prints nothing;
# the status is that of the process (137 when it had to be killed). For children of this shell only.
stop_process() {
    local pid=$1 seconds=$2 tick status=0
    kill -TERM "$pid" 2>/dev/null || true
    for ((tick = 0; tick < seconds * 20; tick++)); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || status=$?
    return "$status"
}
