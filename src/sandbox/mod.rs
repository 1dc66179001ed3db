//! What the daemon gives up before it listens to anybody.
//!
//! A guest that has taken a thread over has that thread's system calls and open files, and nothing
//! else. In this order, once image, key and socket are open:
//!
//! 1. [`Sandbox::confine`], on the one thread that there is: the user that the operator named, no
//!    capabilities and none to be had back (`PR_SET_NO_NEW_PRIVS`), and a Landlock ruleset: no file
//!    can be opened, made or changed by name, no TCP port used, nobody outside be signalled. One thing
//!    is left: to remove the socket at the end.
//! 2. [`Sandbox::enter`], on every thread that it starts: a ruleset without that exception, and a
//!    seccomp filter that lets through what [`Thread::calls`] lists. Anything else kills the process.
//! 3. [`Sandbox::enter`] on the first thread, when all others run. Each filter belongs to its thread
//!    alone: had this one come first, every other would have to fit into it.
//!
//! What an io_uring does passes no filter; the store restricts its rings itself, and makes them before
//! their threads come here.
//!
//! Landlock is what the kernel has of it (Linux 5.13, and more later). Without seccomp a disk is served
//! only if the operator turns the sandbox off.
//!
//! A killed process cannot say which call it was. The kernel's log does, where it keeps an audit
//! (`type=1326 ... sig=31 syscall=N`); under [`Mode::Log`] the same lines come and nothing is killed.

mod calls;
mod filter;
mod paths;
mod privileges;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use calls::{Call, Thread};
pub use privileges::{User, UserError, may_switch_user};

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Off,
    /// Capabilities go, and calls outside of the lists reach the kernel's log, and are done. No
    /// Landlock: that would refuse them.
    Log,
    /// All of it.
    On,
}

/// Why there is no sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A privilege that cannot be given up.
    #[error("cannot {action}: {source}")]
    Privileges {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Landlock is there and does not work.
    #[error("Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// No filter could be made or installed: most often a kernel without seccomp.
    #[error("seccomp: {0}; with --sandbox off it is done without")]
    Seccomp(String),
}

/// What is to be given up, and how much of that there was.
#[derive(Clone, Debug)]
pub struct Sandbox {
    mode: Mode,
    /// Where the socket is.
    directory: Option<PathBuf>,
    landlock: paths::Enforced,
    user: Option<User>,
}

impl Sandbox {
    /// Confines the calling thread, and every one that it starts from now on. To be called while it is
    /// the only one. `user` is switched to whatever the mode. `directory`: where this thread may go on
    /// removing files, by their names.
    ///
    /// # Errors
    /// The user cannot be switched to, or something that the kernel has was refused.
    pub fn confine(
        mode: Mode,
        user: Option<User>,
        directory: Option<&Path>,
    ) -> Result<Self, SandboxError> {
        if mode != Mode::Off {
            privileges::limit_capabilities()?;
        }
        if let Some(user) = &user {
            user.become_it()?;
        }
        let mut landlock = paths::Enforced::default();
        if mode != Mode::Off {
            privileges::drop_capabilities()?;
            privileges::forbid_new()?;
        }
        if mode == Mode::On {
            landlock = paths::restrict(directory)?;
        }
        Ok(Self {
            mode,
            directory: directory.map(Path::to_owned),
            landlock,
            user,
        })
    }

    /// Whether nothing is given up but, perhaps, the user.
    pub fn is_off(&self) -> bool {
        self.mode == Mode::Off
    }

    /// Leaves the calling thread what `thread` lists. What it needs to have, it must have by now.
    ///
    /// # Errors
    /// No seccomp, or Landlock is there and does not work.
    pub fn enter(&self, thread: Thread) -> Result<(), SandboxError> {
        if self.mode == Mode::Off {
            return Ok(());
        }
        if thread != Thread::Signals {
            // Handlers run on the thread that waits for them, with what its list has for them.
            privileges::block_signals()?;
        }
        if self.mode == Mode::On && thread != Thread::Main && self.directory.is_some() {
            paths::restrict(None)?;
        }
        filter::install(thread, self.mode)
    }
}

/// One line for the log: what is in force.
impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = |f: &mut fmt::Formatter<'_>| match &self.user {
            Some(user) => write!(f, ", {user}"),
            None => Ok(()),
        };
        if self.mode == Mode::Off {
            f.write_str("off: system calls, files and capabilities are left as they are")?;
            return user(f);
        }
        let list = |thread: Thread| thread.calls().count();
        let calls = format_args!(
            "seccomp lists of {} system calls (queue), {} (front-end), {} (signals), {} (statistics)",
            list(Thread::Worker),
            list(Thread::Main),
            list(Thread::Signals),
            list(Thread::Stats)
        );
        match self.mode {
            Mode::Log => write!(
                f,
                "log only, nothing is refused: {calls} go to the kernel's log; no Landlock; no \
                 capabilities"
            )?,
            _ => write!(f, "on: {calls}; {}; no capabilities", self.landlock)?,
        }
        user(f)
    }
}
