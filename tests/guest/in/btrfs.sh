# Zoned btrfs. PHASE 1 makes and uses it, 2 is another guest whose plug is pulled, 3 yet another.
. /tests/lib.sh

remount() {
    must umount /mnt
    forget_cache
    must mount -t btrfs "$DISK" /mnt
}

case $PHASE in
1)
    step "mkfs, mount, write"
    must mkfs.btrfs -q -L zoned "$DISK"
    must mount -t btrfs "$DISK" /mnt
    dmesg | grep -q 'host-managed zoned block device' || fail "btrfs does not see a zoned disk"
    make_files /mnt/one 24
    step "subvolume, snapshot, reflink"
    must btrfs subvolume create /mnt/two
    make_files /mnt/two 8
    must btrfs subvolume snapshot /mnt/two /mnt/three
    cp --reflink=always /mnt/one/big /mnt/one/copy 2>/dev/null || cp /mnt/one/big /mnt/one/copy
    rm /mnt/two/tree/1?
    remount
    verify_files /mnt/one
    verify_files /mnt/three
    step "balance"
    must btrfs balance start --full-balance /mnt
    verify_files /mnt/one
    step "delete a subvolume, its zones are reset"
    must btrfs subvolume delete --commit-after /mnt/two
    step "scrub"
    must btrfs scrub start -B /mnt
    grep -q 'no errors found' /tmp/out || fail "scrub: $(cat /tmp/out)"
    remount
    verify_files /mnt/one
    verify_files /mnt/three
    must umount /mnt
    must btrfs check "$DISK"
    kernel_is_content
    ;;
2)
    step "another guest finds everything"
    must mount -t btrfs "$DISK" /mnt
    verify_files /mnt/one
    verify_files /mnt/three
    make_files /mnt/four 8
    kernel_is_content
    echo "not synced" >/mnt/unsynced
    pull-the-plug
    ;;
3)
    step "after the plug was pulled"
    must mount -t btrfs "$DISK" /mnt
    verify_files /mnt/one
    verify_files /mnt/three
    verify_files /mnt/four
    must btrfs scrub start -B /mnt
    grep -q 'no errors found' /tmp/out || fail "scrub: $(cat /tmp/out)"
    must umount /mnt
    kernel_is_content
    ;;
esac
