//! The sandbox of `serve`: its options, and threads that begin in it.

use std::fs;
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use clap::{Args, ValueEnum};
use log::{info, warn};

use crate::device::{ThreadHook, ThreadKind};
use crate::sandbox::{Mode, Sandbox, Thread, User, may_switch_user};
use crate::store::Medium;
use crate::volume::Volume;

use super::error::CliError;

/// How much of the sandbox there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SandboxMode {
    /// None: system calls, files and capabilities stay as they are
    Off,
    /// Nothing is refused; system calls outside of the lists go to the kernel's log
    Log,
    /// A system call outside of its thread's list ends the daemon
    On,
}

/// What the daemon gives up before it listens.
#[derive(Args, Debug)]
pub(super) struct SandboxArgs {
    /// What the daemon may do once image, key and socket are open
    #[arg(long, value_enum, default_value_t = SandboxMode::On, help_heading = "Sandbox")]
    sandbox: SandboxMode,
    /// Become this user, in its group or that one, once image, key and socket are open; the socket then
    /// belongs to it. For root only
    #[arg(long, value_name = "NAME|UID[:GROUP|GID]", value_parser = str::parse::<User>, help_heading = "Sandbox")]
    user: Option<User>,
}

impl SandboxArgs {
    /// Refuses what cannot be done later, before anything is done.
    pub(super) fn check(&self) -> Result<(), CliError> {
        if self.user.is_some() && !may_switch_user() {
            return Err(CliError::Usage(
                "--user is for root: only root can become somebody else".into(),
            ));
        }
        Ok(())
    }

    /// Who the daemon becomes, if somebody else.
    pub(super) fn uid(&self) -> Option<u32> {
        self.user.map(|user| user.ids().0)
    }

    /// Confines this thread, which is the only one, and says how. `socket`: where the one is that it made.
    pub(super) fn confine(&self, socket: Option<&Path>) -> Result<Arc<Sandbox>, CliError> {
        if let (Some(user), Some(socket)) = (&self.user, socket) {
            let (uid, gid) = user.ids();
            // Not where a link leads to that somebody has put there meanwhile.
            lchown(socket, Some(uid), Some(gid))?;
        }
        let mode = match self.sandbox {
            SandboxMode::Off => Mode::Off,
            SandboxMode::Log => Mode::Log,
            SandboxMode::On => Mode::On,
        };
        let parent = socket.and_then(Path::parent);
        let directory = parent.and_then(|parent| match parent.as_os_str().is_empty() {
            true => fs::canonicalize(".").ok(),
            false => fs::canonicalize(parent).ok(),
        });
        let sandbox = Sandbox::confine(mode, self.user, directory.as_deref())?;
        match mode {
            Mode::On => info!("sandbox {sandbox}"),
            Mode::Log | Mode::Off => warn!("sandbox {sandbox}"),
        }
        Ok(Arc::new(sandbox))
    }
}

/// What each thread of the server does first: one that serves a queue gets what that takes and then, as
/// the others, goes into the sandbox.
pub(super) fn hook<M: Medium>(sandbox: &Arc<Sandbox>, volume: &Arc<Volume<M>>) -> ThreadHook {
    let (sandbox, volume) = (Arc::clone(sandbox), Arc::clone(volume));
    ThreadHook::new(move |kind| {
        let thread = match kind {
            ThreadKind::FrontEnd => Thread::Main,
            ThreadKind::Worker if sandbox.is_off() => return Ok(()),
            ThreadKind::Worker => match volume.prepare_thread()? {
                true => Thread::Worker,
                false => Thread::PlainWorker,
            },
        };
        sandbox.enter(thread).map_err(io::Error::other)
    })
}

/// Starts a thread that goes into the sandbox before it works.
pub(super) fn start_thread(
    name: &str,
    sandbox: &Arc<Sandbox>,
    thread: Thread,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), CliError> {
    let sandbox = Arc::clone(sandbox);
    let (tell, told) = sync_channel(1);
    thread::Builder::new().name(name.into()).spawn(move || {
        let entered = sandbox.enter(thread);
        let work = entered.is_ok().then_some(work);
        // The other end waits for it.
        let _ = tell.send(entered);
        if let Some(work) = work {
            work();
        }
    })?;
    let gone = || CliError::Failure(format!("the thread {name:?} ended before it began"));
    Ok(told.recv().map_err(|_| gone())??)
}
