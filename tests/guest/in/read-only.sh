# A disk served with --read-only, after btrfs.sh has filled it.
. /tests/lib.sh
step "nothing can be written, all can be read"
equal "read-only" "$(cat "/sys/block/$NAME/ro")" 1
refused 'ermitted' dd if=/dev/zero of="$DISK" bs=4096 count=1 oflag=direct conv=notrunc
refused '' blkzone reset "$DISK"
must mount -t btrfs -o ro,rescue=nologreplay "$DISK" /mnt
verify_files /mnt/one
must umount /mnt
