# What qemu/demo and qemu/shell have in common: telling, and making and serving the disk.

if [ -t 1 ]; then BOLD=$'\e[1m' PLAIN=$'\e[0m'; else BOLD='' PLAIN=''; fi

headline() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
indent() { sed -u 's/^/    /'; }
boot_note() { headline "Booting $1 (emulated, without KVM)"; }

# show COMMAND...: the command as a user would type it, then what it says.
show() {
    local word line='    $'
    for word in "$@"; do line+=" ${word//$STATE\//}"; done
    say "${line//$ZONEVAULT/zonevault}"
    "$@" 2>&1 | sed "s#$STATE/##g" | indent
}

# start_disk NAME: builds, makes key and disk in a directory that goes away, serves it on two queues.
start_disk() {
    headline "Getting ready: guest, QEMU and a release build (the first time takes a few minutes)"
    "$REPO/qemu/prepare" qemu userland kernel-7.3 | indent
    ZONEVAULT=$(zonevault_binary)
    "$ZONEVAULT" --version | indent
    STATE=$(mktemp -d "${TMPDIR:-/tmp}/zonevault-$1.XXXXXX")
    SOCKET=$STATE/disk.sock
    trap 'daemon_abandon; rm -rf "$STATE"' EXIT
    headline "A key, and an encrypted zoned disk for btrfs"
    say '    $ (umask 077; head -c 64 /dev/urandom > key)'
    (umask 077 && head -c 64 /dev/urandom >"$STATE/key")
    show "$ZONEVAULT" create "$STATE/disk.img" --size 2G --for btrfs --key-file "$STATE/key"
    headline "Serving it to virtual machines"
    say '    $ zonevault serve disk.img --socket disk.sock --key-file key --queues 2 &'
    DAEMON=("$ZONEVAULT" serve "$STATE/disk.img" --socket "$SOCKET" --key-file "$STATE/key" --queues 2)
    daemon_start
}
