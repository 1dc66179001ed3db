# A Rust toolchain from a newer Debian, on machines that have none or one older than Cargo.toml asks for.
# $CACHE/rust/cargo exists only then; the machine's own is preferred.

build_rust() {
    local out=$1 wanted own
    mkdir -p "$out"
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    own=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    host_tools cc:gcc
    if [ ! -e /usr/include/stdlib.h ]; then host_tools libc-headers:libc6-dev; fi
    if [ -n "$own" ] && [ "$(printf '%s\n' "$wanted" "$own" | sort -V | head -n 1)" = "$wanted" ]; then
        echo "the machine's own Rust $own" >"$out/version"
        return
    fi
    # cargo fetches the dependencies over TLS.
    PATH=$PATH:/usr/sbin host_tools update-ca-certificates:ca-certificates
    note "no Rust $wanted here; taking Debian trixie-backports' (about 200 MB)"
    suite_ready trixie-backports
    suite_download trixie-backports "$out.stage" rustc cargo
    python3 "$REPO/qemu/lib/collect.py" "$out.stage" "$out" rustc cargo >/dev/null
    mkdir -p "$out/sysroot/lib"
    mv "$out.stage/usr/lib/rustlib" "$out/sysroot/lib/rustlib"
    # The standard library is linked to from the sysroot; its links point out of the package tree.
    find "$out/sysroot" -xtype l -delete
    loader_script rustc '--sysroot "$here/sysroot"' >"$out/rustc"
    loader_script cargo '' | sed '2i export RUSTC="$(dirname "$(readlink -f "$0")")/rustc"' >"$out/cargo"
    chmod +x "$out/rustc" "$out/cargo"
    echo "Rust $("$out/rustc" --version | cut -d' ' -f2) of Debian trixie-backports" >"$out/version"
}
