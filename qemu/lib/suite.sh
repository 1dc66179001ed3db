# Private apt configurations, so that packages of newer Debian suites can be looked up and
# downloaded (never installed) beside the machine's own.

# The mirror that this machine's own apt uses for Debian.
debian_mirror() {
    local found
    found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list \
        /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '
        $1 == "URIs:" { print $2 }
        $1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^[a-z+]+:/) { print $i; break } }' |
        grep -E '/debian/?$' | head -n 1) || true
    echo "${found:-http://deb.debian.org/debian}"
}

# suite_apt SUITE COMMAND...: runs an apt command that knows SUITE alone. The suites are
# sid, sid-source, trixie-backports (with trixie) and bookworm-backports (with bookworm).
suite_apt() {
    local dir=$CACHE/apt/$1
    shift
    APT_CONFIG=$dir/apt.conf "$@"
}

# suite_ready SUITE: makes SUITE's configuration and fetches its package lists, when they are older
# than an hour (a mirror drops a package soon after a newer one arrives).
suite_ready() {
    local suite=$1 dir=$CACHE/apt/$1
    if [ -n "$(find "$dir/updated" -mmin -60 2>/dev/null)" ]; then return 0; fi
    mkdir -p "$dir"/lists/partial "$dir"/cache/archives/partial "$dir"/etc
    suite_sources "$suite" >"$dir/etc/sources.list"
    suite_config "$suite" "$dir" >"$dir/apt.conf"
    : >"$dir/status"
    suite_apt "$suite" apt-get update -qq >"$dir/update.log" 2>&1 ||
        die "apt-get update failed for Debian $suite; see $dir/update.log (is the mirror reachable?)"
    touch "$dir/updated"
}

suite_sources() {
    local mirror signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    mirror=$(debian_mirror)
    case $1 in
    sid-source) echo "deb-src $signed $mirror sid main" ;;
    *-backports)
        echo "deb $signed $mirror ${1%-backports} main"
        echo "deb $signed $mirror $1 main"
        ;;
    *) echo "deb $signed $mirror $1 main" ;;
    esac
}

suite_config() {
    local suite=$1 dir=$2
    cat <<CONF
Dir::Etc "$dir/etc/";
Dir::Etc::sourcelist "$dir/etc/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d/";
Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d/";
Dir::State "$dir/";
Dir::State::lists "$dir/lists/";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache/";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
CONF
    # Backports are never chosen by themselves; here they are what is wanted.
    case $suite in *-backports) echo "APT::Default-Release \"$suite\";" ;; esac
    # A proxy that the machine's apt needs is needed here too.
    apt-config dump 2>/dev/null | grep -E '^Acquire::https?::' || true
}

# suite_download SUITE DIR PACKAGE...: downloads the packages and every library package that they
# depend on (nothing else of their dependencies is wanted), and unpacks them all into DIR.
suite_download() {
    local suite=$1 into=$2 archives
    shift 2
    archives=$into.debs
    mkdir -p "$into" "$archives"
    local names
    names=$(suite_apt "$suite" python3 "$REPO/qemu/lib/closure.py" "$@") ||
        die "Debian $suite has no package of one of these names: $*"
    # shellcheck disable=SC2086 # one word a package
    (cd "$archives" && suite_apt "$suite" apt-get download -qq $names) >"$archives.log" 2>&1 ||
        die "downloading from Debian $suite failed; see $archives.log, then run this again"
    unpack_archives "$archives" "$into"
    rm -rf "$archives" "$archives.log"
}
