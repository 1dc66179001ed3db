//! Users, capabilities, signals: what the kernel keeps for each thread.
#![expect(
    unsafe_code,
    reason = "users, capabilities and signal masks are reachable through libc only"
)]

use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::str::FromStr;

use thiserror::Error;

use super::SandboxError;

/// Room for an entry of the user or group database, beyond what any real one needs.
const ENTRY_LEN: usize = 64 << 10;

/// Who the daemon becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    uid: libc::uid_t,
    gid: libc::gid_t,
}

/// Why nobody is meant by `NAME|UID[:GROUP|GID]`.
#[derive(Debug, Error)]
pub enum UserError {
    /// Not in the database.
    #[error("there is no user {0:?}")]
    NoUser(String),
    /// Not in the database.
    #[error("there is no group {0:?}")]
    NoGroup(String),
    /// A number without a name has no group that goes with it.
    #[error("user {0} is in no database: say its group too, as {0}:GID")]
    GroupNeeded(libc::uid_t),
    /// The database does not answer.
    #[error("cannot look up {name:?}: {source}")]
    Database {
        /// Who was looked up.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

impl User {
    /// Owner of what the user is to have, and its group.
    pub fn ids(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// The calling process becomes that user, in that group alone.
    pub(super) fn become_it(&self) -> Result<(), SandboxError> {
        // SAFETY: no group is read from the list of none.
        let cleared = unsafe { libc::setgroups(0, std::ptr::null()) };
        check(cleared, "leave the groups (--user is for root)")?;
        let Self { uid, gid } = *self;
        // SAFETY: no memory is involved.
        let switched = unsafe { libc::setresgid(gid, gid, gid) };
        check(switched, "switch the group")?;
        // SAFETY: no memory is involved.
        let switched = unsafe { libc::setresuid(uid, uid, uid) };
        check(switched, "switch the user")?;
        // Another user's process is as dumpable as the system has it, whatever it was before.
        // SAFETY: no memory is involved.
        let kept = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
        check(kept, "stay undumpable")
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}, group {}", self.uid, self.gid)
    }
}

impl FromStr for User {
    type Err = UserError;

    /// `NAME|UID[:GROUP|GID]`; without a group it is the user's own.
    fn from_str(text: &str) -> Result<Self, UserError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let (uid, own) = match user.parse() {
            // To the calls that switch users it means: leave it as it is.
            Ok(libc::uid_t::MAX) => return Err(UserError::NoUser(user.to_owned())),
            Ok(uid) => (uid, group_of(uid)?),
            Err(_) => {
                let (uid, gid) = user_named(user)?;
                (uid, Some(gid))
            }
        };
        let gid = match group.map(|group| (group, group.parse())) {
            None => own.ok_or(UserError::GroupNeeded(uid))?,
            Some((name, Ok(libc::gid_t::MAX))) => return Err(UserError::NoGroup(name.to_owned())),
            Some((_, Ok(gid))) => gid,
            Some((name, Err(_))) => group_named(name)?,
        };
        Ok(Self { uid, gid })
    }
}

/// Whether this process may become another user.
pub fn may_switch_user() -> bool {
    // SAFETY: no memory is involved, and it cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// An entry of a database, as `find` has it written: structure, buffer and its length, result.
fn entry<T, R>(
    name: &str,
    find: impl FnOnce(*mut T, *mut libc::c_char, usize, *mut *mut T) -> libc::c_int,
    take: impl FnOnce(&T) -> R,
) -> Result<Option<R>, UserError> {
    let mut entry = MaybeUninit::<T>::zeroed();
    let mut strings: Vec<libc::c_char> = vec![0; ENTRY_LEN];
    let mut found = std::ptr::null_mut();
    let memory = strings.as_mut_ptr();
    match find(entry.as_mut_ptr(), memory, strings.len(), &raw mut found) {
        // SAFETY: not null, it points to `entry`, which the call has filled and which lives on.
        0 => Ok(unsafe { found.as_ref() }.map(take)),
        errno => Err(UserError::Database {
            name: name.to_owned(),
            source: io::Error::from_raw_os_error(errno),
        }),
    }
}

fn c_string(name: &str, unknown: fn(String) -> UserError) -> Result<CString, UserError> {
    CString::new(name).map_err(|_| unknown(name.to_owned()))
}

fn user_named(name: &str) -> Result<(libc::uid_t, libc::gid_t), UserError> {
    let text = c_string(name, UserError::NoUser)?;
    let text: &CStr = &text;
    entry(
        name,
        // SAFETY: `entry` passes a structure, a buffer with its length, and a place for the result.
        |entry, memory, len, found| unsafe {
            libc::getpwnam_r(text.as_ptr(), entry, memory, len, found)
        },
        |user: &libc::passwd| (user.pw_uid, user.pw_gid),
    )?
    .ok_or_else(|| UserError::NoUser(name.to_owned()))
}

/// The group that goes with a user; none if nobody knows the user.
fn group_of(uid: libc::uid_t) -> Result<Option<libc::gid_t>, UserError> {
    entry(
        &uid.to_string(),
        // SAFETY: as above.
        |entry, memory, len, found| unsafe { libc::getpwuid_r(uid, entry, memory, len, found) },
        |user: &libc::passwd| user.pw_gid,
    )
}

fn group_named(name: &str) -> Result<libc::gid_t, UserError> {
    let text = c_string(name, UserError::NoGroup)?;
    let text: &CStr = &text;
    entry(
        name,
        // SAFETY: as above.
        |entry, memory, len, found| unsafe {
            libc::getgrnam_r(text.as_ptr(), entry, memory, len, found)
        },
        |group: &libc::group| group.gr_gid,
    )?
    .ok_or_else(|| UserError::NoGroup(name.to_owned()))
}

fn check(result: libc::c_int, action: &'static str) -> Result<(), SandboxError> {
    if result == 0 {
        return Ok(());
    }
    Err(SandboxError::Privileges {
        action,
        source: io::Error::last_os_error(),
    })
}

/// No execve gives privileges any more; Landlock and seccomp want that first.
pub(super) fn forbid_new() -> Result<(), SandboxError> {
    // SAFETY: no memory is involved.
    let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    check(set, "give up new privileges")
}

/// Empties the set of capabilities that could ever be had. Only who has CAP_SETPCAP may, and only such
/// a process has something to lose by it.
pub(super) fn limit_capabilities() -> Result<(), SandboxError> {
    for capability in 0..=libc::c_ulong::from(u8::MAX) {
        // SAFETY: no memory is involved.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
            continue;
        }
        let source = io::Error::last_os_error();
        return match source.raw_os_error() {
            // The kernel has no more of them; or nothing may be dropped.
            Some(libc::EINVAL | libc::EPERM) => Ok(()),
            _ => Err(SandboxError::Privileges {
                action: "drop capabilities",
                source,
            }),
        };
    }
    Ok(())
}

/// `struct __user_cap_header_struct` and `__user_cap_data_struct` of the kernel's interface.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 capabilities.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Empties the calling thread's sets.
pub(super) fn drop_capabilities() -> Result<(), SandboxError> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL;
    // SAFETY: no memory is involved. (The one failure is a kernel without ambient capabilities.)
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0) };
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let none = [CapabilityWord::default(); 2];
    // SAFETY: both structures have the layout that the call reads in this version.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    check(libc::c_int::from(set != 0), "drop capabilities")
}

/// Leaves the signals that have handlers to other threads.
pub(super) fn block_signals() -> Result<(), SandboxError> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset makes a set of the memory, sigaddset takes a set and signals that exist, and
    // the old mask is not asked for.
    let errno = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    match errno {
        0 => Ok(()),
        errno => Err(SandboxError::Privileges {
            action: "block signals",
            source: io::Error::from_raw_os_error(errno),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_by_name_and_number() {
        let root = User { uid: 0, gid: 0 };
        for text in ["root", "0", "root:root", "0:0", "root:0", "0:root"] {
            assert_eq!(text.parse::<User>().unwrap(), root, "{text}");
        }
        let other = User {
            uid: 4_000_123,
            gid: 4_000_124,
        };
        assert_eq!("4000123:4000124".parse::<User>().unwrap(), other);
    }

    #[test]
    fn nobody_is_guessed() {
        let refusal = |text: &str| text.parse::<User>().unwrap_err().to_string();
        assert!(refusal("no-such-user").contains("no user"));
        assert!(refusal("").contains("no user"));
        assert!(refusal("a\0b").contains("no user"));
        assert!(refusal("-1").contains("no user"));
        assert!(refusal("4294967295").contains("no user"));
        assert!(refusal("0:4294967295").contains("no group"));
        assert!(refusal("root:no-such-group").contains("no group"));
        assert!(refusal("root:").contains("no group"));
        assert!(refusal("4000123").contains("say its group"));
    }
}
