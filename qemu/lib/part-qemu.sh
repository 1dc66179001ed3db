# QEMU 10.2 or later (the first with a creatable vhost-user-test-device-pci), from a newer Debian,
# started through that Debian's own loader so that it runs on this one.

QEMU_PACKAGES=(qemu-system-x86 qemu-system-data seabios)
QEMU_MINIMUM=10.2
# What a machine without devices of its own needs to start an ELF kernel.
QEMU_FIRMWARE=(bios-256k.bin kvmvapic.bin linuxboot_dma.bin pvh.bin)

build_qemu() {
    local out=$1 stage=$1.stage file
    suite_ready trixie-backports
    suite_download trixie-backports "$stage" "${QEMU_PACKAGES[@]}"
    mkdir -p "$out/data"
    python3 "$REPO/qemu/lib/collect.py" "$stage" "$out" qemu-system-x86_64 >/dev/null
    for file in "${QEMU_FIRMWARE[@]}"; do
        cp -L "$(find "$stage/usr/share/qemu" "$stage/usr/share/seabios" -name "$file" | head -n 1)" \
            "$out/data/"
    done
    cat >"$out/qemu" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib" "$here/bin/qemu-system-x86_64" -L "$here/data" "$@"
RUN
    chmod +x "$out/qemu"
    "$out/qemu" --version | sed -n 's/.*version \([0-9.]*\).*/\1/p' >"$out/version"
    local version
    version=$(cat "$out/version")
    [ "$(printf '%s\n' "$QEMU_MINIMUM" "$version" | sort -V | head -n 1)" = "$QEMU_MINIMUM" ] ||
        die "Debian trixie-backports has QEMU $version; $QEMU_MINIMUM or later is needed"
}
