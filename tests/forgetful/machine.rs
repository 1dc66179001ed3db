//! What else a machine has of its own beside a disk: its mounts and the id of its boot.
//!
//! Both belong to the thread that asked for them and to what it starts, and end with it.
#![expect(
    unsafe_code,
    reason = "mount namespaces, bind mounts and lazy unmounts are reachable through libc only"
)]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::common::rng::Rng;

/// Where Linux tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without zero bytes")
}

/// Gives the thread a view of its own of what is mounted where.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let none = std::ptr::null();
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the target is a C string; the others may be null where only the propagation is changed.
    check(unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) })
}

/// Unmounts what is mounted there, from everybody's sight at once and in truth when nobody uses it any more.
pub fn detach(path: &Path) {
    let path = c_path(path);
    // SAFETY: the path is a C string. It fails if nothing is mounted there, which is as good.
    unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
}

/// The boot that this thread and what it starts believe to run in. Needs [`own_mounts`].
#[derive(Debug)]
pub struct Boot {
    id: NamedTempFile,
}

impl Boot {
    /// The machine is switched on.
    ///
    /// # Panics
    /// If the thread may not mount.
    pub fn first(rng: &mut Rng) -> Self {
        let boot = Self {
            id: NamedTempFile::new().expect("boot id"),
        };
        boot.again(rng);
        let (from, to) = (c_path(boot.id.path()), c_path(Path::new(BOOT_ID)));
        let none = std::ptr::null();
        // SAFETY: both paths are C strings; type and data may be null in a bind mount.
        let bound =
            unsafe { libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()) };
        check(bound).expect("a bind mount over the boot id needs root");
        boot
    }

    /// It is switched on again, after the power was cut.
    ///
    /// # Panics
    /// If the file with the id cannot be written.
    pub fn again(&self, rng: &mut Rng) {
        let uuid = uuid::Uuid::from_u64_pair(rng.bits(), rng.bits());
        std::fs::write(self.id.path(), format!("{uuid}\n")).expect("boot id");
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        detach(Path::new(BOOT_ID));
    }
}
