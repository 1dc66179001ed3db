# Programs and sources of a newer Debian, for parts that are built or run on this one.

# loader_script PROGRAM ARGUMENTS: a script that starts bin/PROGRAM beside it through the loader and libraries beside
# it, with ARGUMENTS (shell words) before its own.
loader_script() {
    cat <<RUN
#!/bin/sh
here=\$(dirname "\$(readlink -f "\$0")")
exec "\$here/lib/ld-linux-x86-64.so.2" --library-path "\$here/lib" "\$here/bin/$1" $2 "\$@"
RUN
}

# source_archive PACKAGE DIR: downloads the upstream source archive of sid's PACKAGE into DIR, prints its path.
source_archive() {
    local package=$1 into=$2
    suite_ready sid-source
    mkdir -p "$into"
    (cd "$into" && suite_apt sid-source apt-get source -qq --download-only --tar-only "$package") \
        >"$into.log" 2>&1 || die "downloading the source of $package failed; see $into.log"
    ls "$into/${package}_"*.orig.tar.*
}
