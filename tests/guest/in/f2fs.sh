# f2fs: its own metadata in the conventional zones, log-structured in the others. Phases as in btrfs.sh.
. /tests/lib.sh

case $PHASE in
1)
    step "mkfs, mount, write"
    must mkfs.f2fs -f -m "$DISK"
    must mount -t f2fs "$DISK" /mnt
    make_files /mnt/one 24
    must umount /mnt
    forget_cache
    must mount -t f2fs "$DISK" /mnt
    verify_files /mnt/one
    step "delete, write again"
    make_files /mnt/two 16
    rm -r /mnt/two
    sync
    make_files /mnt/two 16
    verify_files /mnt/two
    must umount /mnt
    must fsck.f2fs --dry-run "$DISK"
    kernel_is_content
    ;;
2)
    step "another guest finds everything"
    must mount -t f2fs "$DISK" /mnt
    verify_files /mnt/one
    verify_files /mnt/two
    make_files /mnt/three 8
    kernel_is_content
    pull-the-plug
    ;;
3)
    step "after the plug was pulled"
    must mount -t f2fs "$DISK" /mnt
    for i in one two three; do verify_files /mnt/$i; done
    must umount /mnt
    kernel_is_content
    ;;
esac
