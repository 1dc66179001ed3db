# fio's own tests of zoned devices (t/zbd), from the Debian source of the fio that the guest has.

build_zbd_suite() {
    local out=$1 stage=$1.stage archive fio
    mkdir -p "$out" "$stage"
    # The upstream archive alone: Debian changes nothing in t/zbd.
    archive=$(source_archive fio "$stage.source")
    tar -x -C "$stage" --strip-components=1 --wildcards -f "$archive" '*/t/zbd/*'
    cp -r "$stage/t" "$out/t"
    fio=$(basename "$archive")
    echo "t/zbd of ${fio%.orig.tar.*}" | tr _ ' ' >"$out/version"
}
