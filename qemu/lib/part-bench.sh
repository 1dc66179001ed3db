# What tests/bench measures with: fio with its libblkio engine, which no Debian package of fio has, and the
# qemu-storage-daemon of a newer Debian. Both are started through that Debian's own loader.

BENCH_PACKAGES=(libblkio-dev libaio-dev liburing-dev zlib1g-dev libc6-dev linux-libc-dev qemu-utils)
BENCH_PROGRAMS=(fio qemu-storage-daemon qemu-img)

build_bench() {
    local out=$1 stage=$1.stage source=$1.source archive program
    host_tools cc:gcc make:make pkg-config:pkg-config
    suite_ready trixie-backports
    mkdir -p "$out" "$source" "$stage"/usr/{bin,lib,lib64}
    # One place for libraries, whichever of /lib and /usr/lib a package uses, as in an installed system.
    ln -s usr/lib "$stage/lib"
    ln -s usr/lib64 "$stage/lib64"
    suite_download trixie-backports "$stage" "${BENCH_PACKAGES[@]}"
    archive=$(source_archive fio "$source.archive")
    tar -x -C "$source" --strip-components=1 -f "$archive"
    build_fio "$source" "$stage"
    python3 "$REPO/qemu/lib/collect.py" "$stage" "$out" "${BENCH_PROGRAMS[@]}" >/dev/null
    for program in "${BENCH_PROGRAMS[@]}"; do
        loader_script "$program" '' >"$out/$program"
        chmod +x "$out/$program"
    done
    [[ $("$out/fio" --enghelp) == *libblkio* ]] || die "the fio that was built has no libblkio engine"
    {
        "$out/fio" --version
        sed -n 's/^Version: /libblkio-/p' "$stage/usr/lib/x86_64-linux-gnu/pkgconfig/blkio.pc"
        "$out/qemu-storage-daemon" --version | sed -n 's/^\(qemu-storage-daemon\) version \([0-9.]*\).*/\1-\2/p'
    } >"$out/version"
}

# build_fio SOURCE TREE: compiles against the tree's C library and installs into it. Not for this very processor
# alone: what is measured must not depend on where fio was built.
build_fio() {
    local source=$1 tree=$2 log=$2.log
    local libraries=$tree/usr/lib/x86_64-linux-gnu
    # -B and -L: a distribution's compiler looks beside itself for start files and libraries, before the sysroot.
    (
        cd "$source" &&
            export PKG_CONFIG_SYSROOT_DIR=$tree PKG_CONFIG_LIBDIR=$libraries/pkgconfig:$tree/usr/share/pkgconfig &&
            LDFLAGS="-L$libraries" ./configure --cc="cc --sysroot=$tree -B$libraries" --prefix=/usr --disable-native &&
            grep -q '^CONFIG_LIBBLKIO=y' config-host.mak &&
            make -j"${BENCH_JOBS:-$(nproc)}" fio &&
            cp fio "$tree/usr/bin/fio"
    ) >"$log" 2>&1 || die "building fio failed; see $log"
}
