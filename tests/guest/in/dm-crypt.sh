# dm-crypt in the guest, on top of this disk: LUKS2 with its header elsewhere, as zoned disks need it.
. /tests/lib.sh
step "luksFormat, open"
truncate -s 16M /tmp/header
head -c 32 /dev/urandom >/tmp/key
must cryptsetup luksFormat -q --type luks2 --header /tmp/header --sector-size 4096 --pbkdf pbkdf2 \
    --pbkdf-force-iterations 1000 --key-file /tmp/key "$DISK"
must cryptsetup open --header /tmp/header --key-file /tmp/key "$DISK" inner
equal "model" "$(cat /sys/block/dm-0/queue/zoned)" host-managed
step "btrfs on it"
must mkfs.btrfs -q /dev/mapper/inner
must mount -t btrfs /dev/mapper/inner /mnt
make_files /mnt/one 12
must umount /mnt
must cryptsetup close inner
forget_cache
step "close, open, verify"
must cryptsetup open --header /tmp/header --key-file /tmp/key "$DISK" inner
must mount -t btrfs /dev/mapper/inner /mnt
verify_files /mnt/one
must btrfs scrub start -B /mnt
must umount /mnt
must cryptsetup close inner
kernel_is_content
