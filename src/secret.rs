//! Secrets: the volume key, what is derived from it, and the material that unlocks it.
//!
//! Every key of a disk comes from one random *volume key* by HKDF-SHA512 (RFC 5869) under a label
//! of its own. Secrets live in the [arena](crate::arena), are wiped when dropped and are never printed:
//! `Debug` names them and nothing more. [`harden_process`] keeps the rest of the process, what is on its
//! stacks for the length of a call, out of core dumps.
#![expect(
    unsafe_code,
    reason = "prctl, setrlimit, geteuid and taking over an inherited descriptor have no safe form in \
              the standard library"
)]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use sha2::Sha512;
use thiserror::Error;
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use crate::arena::{Guarded, GuardedBytes, scrubbed};
use crate::geometry::{Generation, ZoneIndex};
use crate::zone::ZoneSalt;

/// Bytes of a volume key: as much as the strongest cipher's key, two AES-256 halves.
pub const VOLUME_KEY_LEN: usize = 64;
/// Bytes of a MAC key: a block of SHA-256, which HMAC takes as it is (RFC 2104).
pub const MAC_KEY_LEN: usize = 64;
/// Fewest bytes of a key file: 256 bits, because nothing stretches them.
pub const MIN_KEY_FILE_LEN: usize = 32;
/// Most bytes of a key file: room for any key format; more is some other file named by mistake.
pub const MAX_KEY_FILE_LEN: usize = 8 << 10;
/// Most bytes of a passphrase: far above what anybody types, and it bounds what is read.
pub const MAX_PASSPHRASE_LEN: usize = 1024;

/// Bytes of key material that are read at once.
const PIECE_LEN: usize = 512;

/// Permission bits that must be clear on a key file: everything for group and others.
const FOREIGN_PERMISSIONS: u32 = 0o077;

const LABEL_ZONE_KEY: &[u8] = b"zonevault 1 zone key";
const LABEL_HEADER_MAC: &[u8] = b"zonevault 1 header mac";
const LABEL_RECORD_MAC: &[u8] = b"zonevault 1 zone record mac";

/// The disk's master secret: 64 random bytes, drawn when the disk is made and never changed.
pub struct VolumeKey(Guarded<[u8; VOLUME_KEY_LEN]>);

impl VolumeKey {
    /// A fresh key from the operating system's generator, which is the only thing that can fail.
    pub fn random() -> Result<Self, SecretError> {
        let mut key = Self::zeroed();
        getrandom::fill(key.0.as_mut_slice()).map_err(SecretError::Random)?;
        Ok(key)
    }

    /// A key of zeroes to be filled in place, so that no copy is left elsewhere.
    pub(crate) fn zeroed() -> Self {
        Self(Guarded::new(|| [0; VOLUME_KEY_LEN]))
    }

    /// The key's bytes.
    pub(crate) fn bytes(&self) -> &[u8; VOLUME_KEY_LEN] {
        &self.0
    }

    /// The key's bytes, to fill.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; VOLUME_KEY_LEN] {
        &mut self.0
    }

    /// The key that authenticates the header of volume `uuid`.
    pub(crate) fn header_mac_key(&self, uuid: &Uuid) -> Result<MacKey, SecretError> {
        self.mac_key(LABEL_HEADER_MAC, uuid)
    }

    /// The key that authenticates the zone records of volume `uuid`.
    pub(crate) fn record_mac_key(&self, uuid: &Uuid) -> Result<MacKey, SecretError> {
        self.mac_key(LABEL_RECORD_MAC, uuid)
    }

    fn mac_key(&self, label: &[u8], uuid: &Uuid) -> Result<MacKey, SecretError> {
        let mut key = MacKey(Guarded::new(|| [0; MAC_KEY_LEN]));
        let info = [label, uuid.as_bytes()];
        hkdf(uuid.as_bytes(), self.bytes(), &info, key.0.as_mut_slice())?;
        Ok(key)
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

/// A derived MAC key.
pub(crate) struct MacKey(Guarded<[u8; MAC_KEY_LEN]>);

impl MacKey {
    /// The key's bytes.
    pub(crate) fn bytes(&self) -> &[u8; MAC_KEY_LEN] {
        &self.0
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(..)")
    }
}

/// Derives the key of `zone` in `generation` into the whole of `out` (at most 16,320 bytes, which
/// is what HKDF-SHA512 can give).
///
/// Extract runs over the zone's salt, so that without the salt the volume key is worth nothing:
/// whoever overwrites the salt has erased the zone. Expand binds the key to its volume, zone and
/// generation: `info = "zonevault 1 zone key" || uuid || zone (LE32) || generation (LE64)`. A
/// zone's key is as long as its cipher's keys are, and its first half is Key 1 of XTS.
pub fn derive_zone_key(
    volume_key: &VolumeKey,
    uuid: &Uuid,
    zone: ZoneIndex,
    generation: Generation,
    salt: &ZoneSalt,
    out: &mut [u8],
) -> Result<(), SecretError> {
    let info = [
        LABEL_ZONE_KEY,
        uuid.as_bytes(),
        &zone.0.to_le_bytes(),
        &generation.0.to_le_bytes(),
    ];
    hkdf(&salt.0, volume_key.bytes(), &info, out)
}

/// HKDF-SHA512 of `key` into the whole of `out`. What it computes on the way, from which `out` could be
/// had again, does not stay on the stack.
pub(crate) fn hkdf(
    salt: &[u8],
    key: &[u8],
    info: &[&[u8]],
    out: &mut [u8],
) -> Result<(), SecretError> {
    scrubbed(|| Hkdf::<Sha512>::new(Some(salt), key).expand_multi_info(info, out))
        .map_err(|_| SecretError::KeyLength)
}

/// Fills `bytes` from the operating system's generator.
pub fn random_bytes(bytes: &mut [u8]) -> Result<(), SecretError> {
    getrandom::fill(bytes).map_err(SecretError::Random)
}

/// Bytes that a user handed in to unlock a disk: a passphrase, or the content of a key file.
pub struct KeyMaterial(GuardedBytes);

impl KeyMaterial {
    /// Takes `bytes` over, at most [`LARGEST`](crate::arena::LARGEST) of them, which is more than a
    /// passphrase or key file may have; the vector is wiped.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        let mut material = GuardedBytes::zeroed(bytes.len());
        let len = material.len();
        material.copy_from_slice(&bytes[..len]);
        bytes.zeroize();
        Self(material)
    }

    /// The material.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads a line from a terminal, which hands out one at a time, into the arena, and drops the newline
    /// at its end. More than `limit` bytes are an error.
    pub(crate) fn read_line(
        mut source: impl Read,
        limit: usize,
        name: &str,
    ) -> Result<Self, SecretError> {
        let mut bytes = GuardedBytes::zeroed(limit + 1);
        let filled = source
            .read(&mut bytes)
            .map_err(|error| SecretError::Read(name.to_owned(), error))?;
        bytes.truncate(filled);
        let mut line = Self(bytes);
        line.drop_newline();
        if line.bytes().len() > limit {
            return Err(SecretError::TooLong(name.to_owned(), limit));
        }
        Ok(line)
    }

    fn drop_newline(&mut self) {
        if let Some((b'\n', text)) = self.0.split_last() {
            let len = text.len();
            self.0.truncate(len);
        }
    }

    /// Reads `source` to its end into the arena. Content past `limit` bytes is an error.
    ///
    /// By way of a piece of the stack that is wiped: file systems that hand a reader's pages to a device
    /// or to another process (9p, FUSE without a cache) fail with pages that no kernel may hold on to, as
    /// those of the arena are.
    fn read(mut source: impl Read, limit: usize, name: &str) -> Result<Self, SecretError> {
        let mut bytes = GuardedBytes::zeroed(limit + 1);
        let mut piece = Zeroizing::new([0; PIECE_LEN]);
        let mut filled = 0;
        while filled < bytes.len() {
            let room = PIECE_LEN.min(bytes.len() - filled);
            match source.read(&mut piece[..room]) {
                Ok(0) => break,
                Ok(count) => {
                    let next = filled + count.min(room);
                    bytes[filled..next].copy_from_slice(&piece[..next - filled]);
                    filled = next;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SecretError::Read(name.to_owned(), error)),
            }
        }
        if filled > limit {
            return Err(SecretError::TooLong(name.to_owned(), limit));
        }
        bytes.truncate(filled);
        Ok(Self(bytes))
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMaterial(..)")
    }
}

/// What a user unlocks a disk with. It is only tried on protectors of its kind.
#[derive(Debug)]
pub enum Credential {
    /// Something typed: stretched by argon2id.
    Passphrase(KeyMaterial),
    /// At least 32 bytes that are hard to guess: used as they are.
    KeyFile(KeyMaterial),
}

impl Credential {
    /// The content of the key file at `path`. It must be a regular file, not a symbolic link, that
    /// belongs to us or to root and that nobody else may read.
    pub fn from_key_file(path: &Path) -> Result<Self, SecretError> {
        let file = OpenOptions::new()
            .read(true)
            // Without O_NONBLOCK, opening a FIFO would wait for a writer before it can be refused.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ELOOP) => SecretError::NotRegular(path.to_owned()),
                _ => SecretError::Open(path.to_owned(), error),
            })?;
        let name = format!("key file {}", path.display());
        // Judged by the open descriptor: a look by name could meet another file.
        let metadata = file
            .metadata()
            .map_err(|error| SecretError::Read(name.clone(), error))?;
        if !metadata.is_file() {
            return Err(SecretError::NotRegular(path.to_owned()));
        }
        if metadata.uid() != 0 && metadata.uid() != effective_uid() {
            return Err(SecretError::Owner(path.to_owned(), metadata.uid()));
        }
        if metadata.mode() & FOREIGN_PERMISSIONS != 0 {
            return Err(SecretError::Mode(path.to_owned(), metadata.mode() & 0o7777));
        }
        Self::read_key(file, &name)
    }

    /// A key read to the end of `source`, which messages call `name`.
    pub fn read_key(source: impl Read, name: &str) -> Result<Self, SecretError> {
        let material = KeyMaterial::read(source, MAX_KEY_FILE_LEN, name)?;
        if material.bytes().len() < MIN_KEY_FILE_LEN {
            return Err(SecretError::TooShort(
                name.to_owned(),
                material.bytes().len(),
            ));
        }
        Ok(Self::KeyFile(material))
    }

    /// A passphrase read to the end of `source`, less one newline at its end (`echo` adds it).
    pub fn read_passphrase(source: impl Read, name: &str) -> Result<Self, SecretError> {
        let mut material = KeyMaterial::read(source, MAX_PASSPHRASE_LEN + 1, name)?;
        material.drop_newline();
        Self::passphrase(material, name)
    }

    /// A passphrase that was typed; refused when empty or too long.
    pub fn passphrase(material: KeyMaterial, name: &str) -> Result<Self, SecretError> {
        match material.bytes().len() {
            0 => Err(SecretError::Empty(name.to_owned())),
            len if len > MAX_PASSPHRASE_LEN => {
                Err(SecretError::TooLong(name.to_owned(), MAX_PASSPHRASE_LEN))
            }
            _ => Ok(Self::Passphrase(material)),
        }
    }
}

/// Checks that key material can come from descriptor `fd`: that it is open, and neither standard output nor
/// standard error.
///
/// To be called before the process opens anything: later a number that the parent did not pass may be that
/// of a file of our own.
///
/// # Errors
/// [`SecretError::BadFd`].
pub fn check_fd(fd: i32) -> Result<(), SecretError> {
    // SAFETY: F_GETFD takes no pointer and changes nothing; an unknown number gives EBADF.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1;
    if !open || fd < 0 || fd == libc::STDOUT_FILENO || fd == libc::STDERR_FILENO {
        return Err(SecretError::BadFd(fd));
    }
    Ok(())
}

/// Takes over descriptor `fd` that the parent process left open for us ([`check_fd`]), to read key material.
///
/// # Errors
/// Those of [`check_fd`].
pub fn inherited_fd(fd: i32) -> Result<File, SecretError> {
    check_fd(fd)?;
    // SAFETY: the descriptor is open, and the user named it as ours to consume.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Keeps this process's memory out of core dumps and away from other processes of the same user.
/// Best effort: a failure costs a protection, never the service.
pub fn harden_process() {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: PR_SET_DUMPABLE takes one integer; `none` outlives the call that reads it.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_DUMPABLE, 0),
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none),
        ]
    };
    if results.contains(&-1) {
        log::warn!("core dumps could not be turned off: a crash may write keys to disk");
    }
}

fn effective_uid() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Why a secret could not be read or made. Each names the source and the cure; none shows a byte.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system: {0}")]
    Random(getrandom::Error),
    /// A caller asked HKDF for more than 255 hashes.
    #[error("a derived key of this length is not possible")]
    KeyLength,
    /// The key file could not be opened.
    #[error("key file {}: {}", .0.display(), .1)]
    Open(PathBuf, io::Error),
    /// Reading failed.
    #[error("{0}: cannot be read: {1}")]
    Read(String, io::Error),
    /// A link, a directory, a device or a pipe.
    #[error(
        "key file {}: not a regular file (links are not followed): name the file itself, or pass \
         a pipe with --key-fd",
        .0.display()
    )]
    NotRegular(PathBuf),
    /// Somebody else's file.
    #[error(
        "key file {}: belongs to user {}, who could change it: chown it to yourself or to root",
        .0.display(),
        .1
    )]
    Owner(PathBuf, u32),
    /// Others may read it.
    #[error("key file {}: mode {:04o} lets others use it: chmod 600 it", .0.display(), .1)]
    Mode(PathBuf, u32),
    /// Less than [`MIN_KEY_FILE_LEN`].
    #[error(
        "{0}: holds {1} bytes, a key needs at least {MIN_KEY_FILE_LEN}: make one with \
         `head -c 64 /dev/urandom`, or use --passphrase-fd for a passphrase"
    )]
    TooShort(String, usize),
    /// More than its limit.
    #[error("{0}: holds more than {1} bytes: this is not what you meant to name")]
    TooLong(String, usize),
    /// No passphrase.
    #[error("{0}: the passphrase is empty")]
    Empty(String),
    /// A descriptor number that cannot be a key's.
    #[error("descriptor {0} is not open for reading a key: pass it in, for example 3<key")]
    BadFd(i32),
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(fill: u8) -> VolumeKey {
        VolumeKey(Guarded::new(|| [fill; VOLUME_KEY_LEN]))
    }

    fn zone_key(volume: &VolumeKey, uuid: u128, zone: u32, generation: u64, salt: u8) -> [u8; 64] {
        let mut out = [0; 64];
        derive_zone_key(
            volume,
            &Uuid::from_u128(uuid),
            ZoneIndex(zone),
            Generation(generation),
            &ZoneSalt([salt; 32]),
            &mut out,
        )
        .unwrap();
        out
    }

    #[test]
    fn a_zone_key_depends_on_every_input() {
        let base = zone_key(&key(1), 2, 3, 4, 5);
        assert_eq!(base, zone_key(&key(1), 2, 3, 4, 5));
        assert_ne!(base, zone_key(&key(9), 2, 3, 4, 5));
        assert_ne!(base, zone_key(&key(1), 9, 3, 4, 5));
        assert_ne!(base, zone_key(&key(1), 2, 9, 4, 5));
        assert_ne!(base, zone_key(&key(1), 2, 3, 9, 5));
        assert_ne!(base, zone_key(&key(1), 2, 3, 4, 9));
        assert_ne!(base[..32], base[32..]);
    }

    /// RFC 5869 written out with HMAC alone: checks how salt, key and info are arranged.
    #[test]
    fn a_zone_key_is_hkdf_over_the_zone_salt() {
        use hmac::{Hmac, KeyInit, Mac};
        let hmac = |key: &[u8], message: &[u8]| {
            let mut mac = Hmac::<Sha512>::new_from_slice(key).unwrap();
            mac.update(message);
            mac.finalize().into_bytes()
        };
        let prk = hmac(&[5; 32], &[1; 64]);
        let mut info = LABEL_ZONE_KEY.to_vec();
        info.extend(Uuid::from_u128(2).as_bytes());
        info.extend([3, 0, 0, 0]);
        info.extend([4, 0, 0, 0, 0, 0, 0, 0]);
        info.push(1);
        assert_eq!(
            hmac(&prk, &info).as_slice(),
            zone_key(&key(1), 2, 3, 4, 5).as_slice()
        );
    }

    #[test]
    fn mac_keys_differ_by_purpose_and_volume() {
        let uuid = Uuid::from_u128(7);
        let header = key(1).header_mac_key(&uuid).unwrap();
        let record = key(1).record_mac_key(&uuid).unwrap();
        let other = key(1).record_mac_key(&Uuid::from_u128(8)).unwrap();
        assert_ne!(header.bytes(), record.bytes());
        assert_ne!(record.bytes(), other.bytes());
    }

    #[test]
    fn debug_shows_no_byte() {
        let shown = format!(
            "{:?} {:?} {:?}",
            key(0xAB),
            Credential::Passphrase(KeyMaterial::new(b"hunter2".to_vec())),
            key(1).header_mac_key(&Uuid::nil()).unwrap(),
        );
        assert_eq!(
            shown,
            "VolumeKey(..) Passphrase(KeyMaterial(..)) MacKey(..)"
        );
    }

    #[test]
    fn key_files_that_others_reach_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, [7; 64]).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(
                Credential::from_key_file(&path),
                Err(SecretError::Mode(_, found)) if found == mode
            ));
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            Credential::from_key_file(&path),
            Ok(Credential::KeyFile(material)) if material.bytes() == [7; 64]
        ));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for odd in [link.as_path(), dir.path()] {
            assert!(matches!(
                Credential::from_key_file(odd),
                Err(SecretError::NotRegular(_))
            ));
        }
        assert!(matches!(
            Credential::from_key_file(&dir.path().join("none")),
            Err(SecretError::Open(..))
        ));
    }

    #[test]
    fn lengths_are_bounded() {
        let key = |len: usize| Credential::read_key(vec![1; len].as_slice(), "key");
        assert!(matches!(key(31), Err(SecretError::TooShort(_, 31))));
        assert!(key(32).is_ok());
        assert!(key(MAX_KEY_FILE_LEN).is_ok());
        assert!(matches!(
            key(MAX_KEY_FILE_LEN + 1),
            Err(SecretError::TooLong(..))
        ));
        let phrase = |text: &[u8]| Credential::read_passphrase(text, "passphrase");
        assert!(matches!(phrase(b""), Err(SecretError::Empty(_))));
        assert!(matches!(phrase(b"\n"), Err(SecretError::Empty(_))));
        assert!(matches!(
            phrase(b"two words \n"),
            Ok(Credential::Passphrase(material)) if material.bytes() == b"two words "
        ));
        assert!(phrase(&[b'x'; MAX_PASSPHRASE_LEN]).is_ok());
        assert!(matches!(
            phrase(&[b'x'; MAX_PASSPHRASE_LEN + 1]),
            Err(SecretError::TooLong(..))
        ));
    }

    /// A file as a file system hands it over that has the kernel hold on to the reader's pages.
    struct Pinning<'a>(&'a [u8]);

    impl Read for Pinning<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let len = buf.len().min(self.0.len());
            let part = |start: *mut libc::c_void| libc::iovec {
                iov_base: start,
                iov_len: len,
            };
            let (from, to) = (
                part(self.0.as_ptr().cast_mut().cast()),
                part(buf.as_mut_ptr().cast()),
            );
            // SAFETY: both parts have `len` bytes and outlive the call, which reads the first, in this
            // process, and writes the second.
            let done = unsafe { libc::process_vm_writev(libc::getpid(), &from, 1, &to, 1, 0) };
            let done = usize::try_from(done).map_err(|_| io::Error::last_os_error())?;
            self.0 = &self.0[done..];
            Ok(done)
        }
    }

    #[test]
    fn a_key_file_is_read_from_a_file_system_that_pins_pages() {
        let key: Vec<u8> = (0..=250).cycle().take(MAX_KEY_FILE_LEN).collect();
        for len in [32, PIECE_LEN, PIECE_LEN + 1, MAX_KEY_FILE_LEN] {
            let read = Credential::read_key(Pinning(&key[..len]), "key").unwrap();
            let Credential::KeyFile(material) = read else {
                panic!("{read:?}");
            };
            assert_eq!(material.bytes(), &key[..len]);
        }
        let mut long = key.clone();
        long.push(1);
        let long = Credential::read_key(Pinning(&long), "key");
        assert!(matches!(long, Err(SecretError::TooLong(..))));
    }

    #[test]
    fn descriptors_that_are_not_a_key_are_refused() {
        for fd in [-1, 1, 2, 9_999] {
            assert!(matches!(inherited_fd(fd), Err(SecretError::BadFd(_))));
        }
    }
}
