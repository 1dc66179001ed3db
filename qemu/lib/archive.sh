# Packages taken apart, initramfs pieces put together.

# unpack_archives DIR TREE: all packages of DIR, without what only a reader wants.
unpack_archives() {
    local archive
    for archive in "$1"/*.deb; do
        dpkg-deb --fsys-tarfile "$archive" |
            tar -x -C "$2" --keep-directory-symlink --no-same-owner \
                --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale'
    done
}

# pack_tree TREE FILE: an uncompressed archive; inflating one costs an emulated guest more than reading it.
pack_tree() {
    (cd "$1" && find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort |
        cpio -o -H newc --quiet --owner=0:0) >"$2"
}
