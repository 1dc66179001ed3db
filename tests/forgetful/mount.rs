//! The file system as the kernel sees it: one directory with files that exist from the start.
//!
//! Files are opened for direct I/O, so the kernel holds back nothing: what a process wrote is here the moment its call
//! returned, whether it asked for O_DIRECT or not, and a process that is killed takes nothing with it. Locks are the
//! kernel's own.
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use tempfile::TempDir;

use crate::common::rng::Rng;

use super::machine;
use super::medium::{Keep, Loss, Medium};

/// Threads that answer the kernel: enough for writes to overtake each other and a sync.
const THREADS: usize = 4;
/// How long the kernel may remember names and attributes: not at all.
const TTL: Duration = Duration::ZERO;
/// A write of a hesitating medium takes at most this long, in microseconds.
const LONGEST_WRITE: u64 = 300;
/// And a sync this.
const LONGEST_SYNC: u64 = 3000;
/// One in so many writes hesitates: the others overtake it.
const HESITATING: u64 = 8;

/// What came through the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Writes.
    pub writes: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Bytes that a disk below a page cache would have written; see [`Medium::settled`].
    pub settled: u64,
    /// Syncs that ended.
    pub syncs: u64,
    /// Holes punched.
    pub holes: u64,
    /// Calls through descriptors that a cut had made void.
    pub stale: u64,
}

#[derive(Debug)]
struct State {
    files: Vec<Medium>,
    /// Cuts so far. A descriptor of an earlier era belongs to a process that had no power any more.
    era: u64,
    traffic: Traffic,
    /// The medium does nothing until the next cut.
    frozen: bool,
    /// Draws how long things take; `None`: no longer than they must.
    hesitation: Option<Rng>,
}

impl State {
    /// How long to wait before one in `n` things of at most `longest` microseconds.
    fn hesitate(&mut self, n: u64, longest: u64) -> Duration {
        let Some(rng) = &mut self.hesitation else {
            return Duration::ZERO;
        };
        let hesitates = rng.one_in(n);
        Duration::from_micros(if hesitates { rng.below(longest) } else { 0 })
    }

    /// The file, if `fh` was opened since the last cut.
    fn file(&mut self, ino: INodeNo, fh: FileHandle) -> Result<&mut Medium, Errno> {
        if fh.0 != self.era {
            self.traffic.stale += 1;
            return Err(Errno::EIO);
        }
        file_index(ino)
            .and_then(|at| self.files.get_mut(at))
            .ok_or(Errno::ENOENT)
    }
}

/// Inode 1 is the directory, the files follow.
fn file_index(ino: INodeNo) -> Option<usize> {
    usize::try_from(ino.0).ok()?.checked_sub(2)
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    thawed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, once the medium does something.
    fn thawed(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        self.thawed
            .wait_while(state, |state| state.frozen)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Forgetful {
    names: Vec<String>,
    shared: Arc<Shared>,
}

fn pause(time: Duration) {
    if time > Duration::ZERO {
        std::thread::sleep(time);
    }
}

fn offset_of(offset: u64) -> Result<usize, Errno> {
    usize::try_from(offset).map_err(|_| Errno::EINVAL)
}

impl Forgetful {
    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (size, kind, perm) = if ino == INodeNo::ROOT {
            (0, FileType::Directory, 0o755)
        } else {
            let at = file_index(ino)?;
            let size = self.shared.thawed().files.get(at)?.len();
            (size, FileType::RegularFile, 0o600)
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn write_now(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        flags: OpenFlags,
    ) -> Result<u32, Errno> {
        let offset = offset_of(offset)?;
        let time = self.shared.thawed().hesitate(HESITATING, LONGEST_WRITE);
        pause(time);
        let mut state = self.shared.thawed();
        state
            .file(ino, fh)?
            .write(offset, data.to_vec(), flags.0 & libc::O_DIRECT != 0);
        state.traffic.writes += 1;
        state.traffic.bytes += data.len() as u64;
        u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
    }

    fn sync_now(&self, ino: INodeNo, fh: FileHandle) -> Result<(), Errno> {
        let (moment, time) = {
            let mut state = self.shared.thawed();
            let moment = state.file(ino, fh)?.moment();
            (moment, state.hesitate(1, LONGEST_SYNC))
        };
        pause(time);
        let mut state = self.shared.thawed();
        state.file(ino, fh)?.sync(moment);
        state.traffic.syncs += 1;
        Ok(())
    }

    fn punch_now(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        if mode != libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE {
            return Err(Errno::EOPNOTSUPP);
        }
        let (offset, length) = (offset_of(offset)?, offset_of(length)?);
        let mut state = self.shared.thawed();
        state.file(ino, fh)?.punch(offset, length);
        state.traffic.holes += 1;
        Ok(())
    }
}

fn finish(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Forgetful {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = self.names.iter().position(|n| OsStr::new(n) == name);
        match at.and_then(|at| self.attr(INodeNo(at as u64 + 2))) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let (Some(size), Some(at)) = (size.and_then(|s| offset_of(s).ok()), file_index(ino))
            && let Some(file) = self.shared.thawed().files.get_mut(at)
        {
            file.set_len(size);
        }
        self.getattr(_req, ino, _fh, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let era = self.shared.thawed().era;
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(era), flags);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.shared.thawed();
        let read = offset_of(offset).and_then(|offset| {
            let file = state.file(ino, fh)?;
            Ok(file.read(offset, size as usize).to_vec())
        });
        drop(state);
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_now(ino, fh, offset, data, flags) {
            Ok(len) => reply.written(len),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // What close(2) calls: it makes nothing durable.
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        finish(reply, self.sync_now(ino, fh));
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        finish(reply, self.punch_now(ino, fh, offset, length, mode));
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, name) in (1..).zip(&self.names).skip(skip) {
            if reply.add(INodeNo(at + 1), at, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}

/// A mounted file system with empty files. It is there for the thread that mounted it and for the processes and threads
/// which that one starts, and for nobody else; so it ends with them, however they end.
#[derive(Debug)]
pub struct Mount {
    session: Option<BackgroundSession>,
    shared: Arc<Shared>,
    dir: TempDir,
}

impl Mount {
    /// Mounts a file system with these files. With `hesitation`, writes and syncs take random times.
    ///
    /// # Panics
    /// Where it cannot: a test that needs power cuts has not passed without them.
    pub fn new(names: &[&str], hesitation: Option<Rng>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("zv-forgetful-")
            .tempdir()
            .expect("temporary directory");
        let state = State {
            files: names.iter().map(|_| Medium::default()).collect(),
            era: 0,
            traffic: Traffic::default(),
            frozen: false,
            hesitation,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            thawed: Condvar::new(),
        });
        let forgetful = Forgetful {
            names: names.iter().map(ToString::to_string).collect(),
            shared: Arc::clone(&shared),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("forgetful".into())];
        config.n_threads = Some(THREADS);
        let session = machine::own_mounts()
            .and_then(|()| fuser::spawn_mount(forgetful, dir.path(), &config))
            .unwrap_or_else(|err| {
                panic!("this test mounts a FUSE file system: it needs root and /dev/fuse ({err})")
            });
        Self {
            session: Some(session),
            shared,
            dir,
        }
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The medium stops in the middle of whatever it does, until the next cut: whoever waits for it goes on waiting.
    pub fn freeze(&self) {
        self.shared.lock().frozen = true;
    }

    /// The power fails. Descriptors that are open now are of no use any more, whatever still comes through them.
    pub fn cut(&self, keep: Keep, rng: &mut Rng) -> Loss {
        let mut state = self.shared.lock();
        state.era += 1;
        state.frozen = false;
        self.shared.thawed.notify_all();
        let mut loss = Loss::default();
        for file in &mut state.files {
            loss.add(file.cut(keep, rng));
        }
        loss
    }

    /// What came through so far.
    pub fn traffic(&self) -> Traffic {
        let state = self.shared.lock();
        Traffic {
            settled: state.files.iter().map(Medium::settled).sum(),
            ..state.traffic
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.shared.lock().frozen = false;
        self.shared.thawed.notify_all();
        // The kernel may not be done yet with a daemon that was killed, and then would call it busy.
        machine::detach(self.dir.path());
        drop(self.session.take());
    }
}
