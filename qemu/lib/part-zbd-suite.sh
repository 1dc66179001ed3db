# fio's own tests of zoned devices (t/zbd), from the Debian source of the fio that the guest has.

build_zbd_suite() {
    local out=$1 stage=$1.stage fio
    mkdir -p "$out" "$stage"
    suite_ready sid-source
    # The upstream archive alone: Debian changes nothing in t/zbd.
    (cd "$stage" && suite_apt sid-source apt-get source -qq --download-only --tar-only fio) \
        >"$stage.log" 2>&1 || die "downloading the source of fio failed; see $stage.log"
    fio=$(ls "$stage")
    tar -x -C "$stage" --strip-components=1 --wildcards -f "$stage/$fio" '*/t/zbd/*'
    cp -r "$stage/t" "$out/t"
    echo "t/zbd of ${fio%.orig.tar.*}" | tr _ ' ' >"$out/version"
}
