# Zoned XFS: metadata in the conventional zones, data in the others. Phases as in btrfs.sh.
. /tests/lib.sh

case $PHASE in
1)
    step "mkfs, mount, write"
    must mkfs.xfs -q -r zoned=1 "$DISK"
    must mount -t xfs "$DISK" /mnt
    make_files /mnt/one 24
    must umount /mnt
    forget_cache
    must mount -t xfs "$DISK" /mnt
    verify_files /mnt/one
    step "overwrite and delete until zones are collected"
    for round in 1 2 3; do
        make_files /mnt/two 24
        rm /mnt/two/patched
        sync
    done
    (cd /mnt/two && grep -v patched SUMS >S && mv S SUMS)
    verify_files /mnt/two
    verify_files /mnt/one
    must umount /mnt
    must xfs_repair -n "$DISK"
    kernel_is_content
    ;;
2)
    step "another guest finds everything"
    must mount -t xfs "$DISK" /mnt
    verify_files /mnt/one
    verify_files /mnt/two
    make_files /mnt/three 8
    kernel_is_content
    pull-the-plug
    ;;
3)
    step "after the plug was pulled"
    must mount -t xfs "$DISK" /mnt
    for i in one two three; do verify_files /mnt/$i; done
    must umount /mnt
    must xfs_repair -n "$DISK"
    kernel_is_content
    ;;
esac
