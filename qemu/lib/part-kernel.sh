# Guest kernels. Each is a directory with vmlinux (ELF), modules.cpio and release.

# name -> series, flavour ("" is the generic one, the only one that has f2fs), suites to look in.
declare -A KERNEL_SERIES=([7.3]=7.3 [7.3-generic]=7.3 [6.12]=6.12)
declare -A KERNEL_FLAVOUR=([7.3]=cloud- [7.3-generic]="" [6.12]=cloud-)
declare -A KERNEL_SUITES=([7.3]="trixie-backports sid" [7.3-generic]="trixie-backports sid"
    [6.12]="bookworm-backports trixie-backports")

# Wanted where the kernel has them as modules; those that it has built in need nothing.
KERNEL_MODULES=(virtio_pci virtio_blk nvme null_blk loop btrfs zonefs xfs f2fs ext4 dm-crypt mq-deadline
    xts aes aes_generic aesni-intel crc32c crc32c_generic crc32c-intel crc32 sha256 essiv cbc)
# Parts of the module tree that any of them can depend on; the rest is not unpacked.
KERNEL_TREES=(arch block crypto drivers/block drivers/md drivers/nvme drivers/virtio fs lib)

build_kernel() {
    local out=$1 stage=$1.stage tree=$1.tree name=$2 found suite release
    found=$(find_kernel "$name") || exit 1
    read -r suite release <<<"$found"
    mkdir -p "$out" "$stage" "$stage.debs" "$tree/lib/modules"
    fetch_kernel "$suite" "$release" "$stage.debs"
    unpack_kernel "$stage.debs" "$stage"
    echo "$release" >"$out/release"
    python3 "$REPO/qemu/lib/vmlinux.py" "$(find "$stage" -name 'vmlinuz*' -type f | head -n 1)" "$out/vmlinux"
    # One place for the modules, whichever of /lib and /usr/lib the package uses.
    mkdir -p "$stage/all/lib/modules"
    mv "$(find "$stage" -path '*/lib/modules/*' -maxdepth 5 -name "$release" -type d | head -n 1)" \
        "$stage/all/lib/modules/$release"
    pick_modules "$stage/all" "$release" "$tree"
    pack_tree "$tree" "$out/modules.cpio"
    rm -rf "$stage.debs" "$tree"
}

# find_kernel NAME prints "suite release": the newest of NAME's series, or the newest after it.
find_kernel() {
    local name=$1 series=${KERNEL_SERIES[$1]} flavour=${KERNEL_FLAVOUR[$1]} suite release
    for suite in ${KERNEL_SUITES[$name]}; do
        suite_ready "$suite"
        release=$(kernel_releases "$suite" "$flavour" | grep -E "^${series//./\\.}\." | tail -n 1) || true
        if [ -n "$release" ]; then
            echo "$suite $release"
            return
        fi
    done
    for suite in ${KERNEL_SUITES[$name]}; do
        release=$(kernel_releases "$suite" "$flavour" | tail -n 1)
        if [ "$(printf '%s\n' "$series" "$release" | sort -V | head -n 1)" = "$series" ]; then
            note "no kernel $series in Debian any more; $release stands in for it"
            echo "$suite $release"
            return
        fi
    done
    note "no kernel $series or later in ${KERNEL_SUITES[$name]}"
    return 1
}

# kernel_releases SUITE FLAVOUR: what that suite has, oldest first.
kernel_releases() {
    suite_apt "$1" apt-cache search --names-only '^linux-image-[0-9]' |
        sed -n "s/^linux-image-\([0-9][0-9.]*[0-9][^ -]*-${2}amd64\) .*/\1/p" |
        grep -Ev -- '-(cloud|rt)-.*-' | { if [ -n "$2" ]; then cat; else grep -Ev -- '-(cloud|rt)-'; fi; } |
        sort -V
}

# Newer kernels are split in an image without files, and packages for its binary, modules and indexes.
fetch_kernel() {
    local suite=$1 release=$2 into=$3 names=() kind
    for kind in image base binary modules; do
        if suite_apt "$suite" apt-cache show "linux-$kind-$release" >/dev/null 2>&1; then
            names+=("linux-$kind-$release")
        fi
    done
    (cd "$into" && suite_apt "$suite" apt-get download -qq "${names[@]}") >"$into.log" 2>&1 ||
        die "downloading ${names[*]} failed; see $into.log, then run this again"
    rm "$into.log"
}

unpack_kernel() {
    local archive part patterns=('./boot/vmlinuz*' '*/vmlinuz' '*/modules.*')
    for part in "${KERNEL_TREES[@]}"; do patterns+=("*/kernel/$part/*"); done
    for archive in "$1"/*.deb; do
        # tar fails when a pattern matches nothing, which is so for most of these packages.
        dpkg-deb --fsys-tarfile "$archive" | tar -x -C "$2" --wildcards "${patterns[@]}" 2>/dev/null || true
    done
}

# pick_modules STAGE RELEASE TREE: the wanted modules and all they depend on, unpacked and indexed.
pick_modules() {
    local stage=$1 release=$2 tree=$3/lib/modules/$2 module file files=()
    mkdir -p "$tree"
    depmod -b "$stage" "$release"
    for module in "${KERNEL_MODULES[@]}"; do
        mapfile -t -O "${#files[@]}" files < <(
            modprobe -d "$stage" -S "$release" --show-depends "$module" 2>/dev/null | sed -n 's/^insmod //p'
        )
    done
    for file in "${files[@]}"; do
        file=${file%% *}
        case $file in
        *.xz) xz -dc "$file" >"$tree/$(basename "$file" .xz)" ;;
        *.zst) zstd -dcq "$file" >"$tree/$(basename "$file" .zst)" ;;
        *) cp "$file" "$tree/" ;;
        esac
    done
    cp "$stage/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$tree/"
    depmod -b "$3" "$release"
    # Only the text indexes are read in the guest.
    rm -f "$tree"/*.bin "$tree/modules.builtin.modinfo" "$tree/modules.order"
}
