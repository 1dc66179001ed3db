# The guest's programs, as three initramfs pieces: base.cpio (always), fio.cpio (its libraries weigh
# more than all the rest, so only on request) and suite.cpio (what fio's own zone tests are run by).

# Debian unstable alone has an xfsprogs that can make zoned XFS; all comes from there, of one C library.
USERLAND_PACKAGES=(bash btrfs-progs busybox-static cryptsetup-bin dash dmsetup e2fsprogs f2fs-tools mount openssl
    util-linux util-linux-extra xfsprogs zbd-utils zonefs-tools)
BASE_PROGRAMS=(bash blkdiscard blkid blkzone btrfs cryptsetup dash dmsetup e2fsck fallocate fsck.f2fs fstrim lsblk
    mkfs.btrfs mkfs.ext4 mkfs.f2fs mkfs.xfs mkzonefs mount umount openssl xfs_io xfs_repair zbd)
SUITE_PACKAGES=(coreutils gawk grep sed)
SUITE_PROGRAMS=(date dd gawk grep head nproc realpath sed seq sort stat tail timeout)

build_userland() {
    local out=$1 stage=$1.stage
    suite_ready sid
    suite_download sid "$stage" "${USERLAND_PACKAGES[@]}" "${SUITE_PACKAGES[@]}" fio
    mkdir -p "$out"
    base_tree "$stage" "$out/base"
    pack_tree "$out/base" "$out/base.cpio"
    extra_tree "$stage" "$out/fio" "$out/base" fio
    pack_tree "$out/fio" "$out/fio.cpio"
    extra_tree "$stage" "$out/suite" "$out/base" "${SUITE_PROGRAMS[@]}"
    ln -sf gawk "$out/suite/bin/awk"
    pack_tree "$out/suite" "$out/suite.cpio"
    "$out/base/lib/ld-linux-x86-64.so.2" --library-path "$out/fio/lib:$out/base/lib" \
        "$out/fio/bin/fio" --version >"$out/fio-version"
    rm -rf "$out/base" "$out/fio" "$out/suite"
}

# base_tree STAGE TREE: programs, libraries, busybox for everything else, and this project's init.
base_tree() {
    local stage=$1 tree=$2 name
    mkdir -p "$tree"/{bin,dev,etc,lib,mnt,proc,root,run,sys,tmp,usr}
    ln -s bin "$tree/sbin"
    ln -s lib "$tree/lib64"
    ln -s ../bin "$tree/usr/bin"
    ln -s ../bin "$tree/usr/sbin"
    ln -s ../lib "$tree/usr/lib"
    python3 "$REPO/qemu/lib/collect.py" "$stage" "$tree" "${BASE_PROGRAMS[@]}" >/dev/null
    ln -s mkzonefs "$tree/bin/mkfs.zonefs"
    # Not busybox's shell, which prefers its own version of a program to the real one in /bin.
    ln -s dash "$tree/bin/sh"
    cp "$stage/usr/bin/busybox" "$tree/bin/busybox"
    for name in $("$tree/bin/busybox" --list); do
        [ -e "$tree/bin/$name" ] || ln -s busybox "$tree/bin/$name"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$tree/etc/passwd"
    ln -s ../proc/mounts "$tree/etc/mtab"
    install -m 755 "$REPO/qemu/guest/init" "$tree/init"
    install -m 755 "$REPO/qemu/guest/host-call" "$REPO/qemu/guest/pull-the-plug" "$tree/bin/"
}

# extra_tree STAGE TREE BASE PROGRAM...: the programs and those of their libraries that BASE lacks.
extra_tree() {
    local stage=$1 tree=$2 base=$3 library
    shift 3
    python3 "$REPO/qemu/lib/collect.py" "$stage" "$tree" "$@" >/dev/null
    for library in "$tree"/lib/*; do
        if [ -e "$base/lib/$(basename "$library")" ]; then rm "$library"; fi
    done
}
