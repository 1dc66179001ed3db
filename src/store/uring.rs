//! Operations in flight on an io_uring, and the buffers that the kernel holds meanwhile.
//!
//! A slot owns an operation from its submission to its completion; the kernel knows it by the
//! slot's number. A slot has at most one entry in the ring at any time, and there are no more
//! slots than entries, so neither queue of the ring can overflow; what finds no free slot waits in
//! line.
//!
//! # Sleeping
//!
//! The ring is made for one issuer with its completion work deferred (Linux 6.1): the kernel
//! interrupts nobody, and finishes operations when their owner enters. The eventfd fires already
//! when such work comes up, so an owner asleep in epoll is woken, enters and finds completions.
//! It fires for the first item of a batch only, hence the order in [`Ring::reap`]: run the work,
//! clear the event, then look for more work. Work that arrived before the clearing is seen, work
//! that arrives after it fires again.
//!
//! # When the kernel is told
//!
//! A disk that has nothing to do waits for nobody: as soon as as much is queued as the kernel has, it is told, so
//! the first operation of a burst goes at once, then the next, two, four: few calls, and the disk works on the
//! first while its owner makes the others. What is left is told by [`Ring::kick`].
//!
//! # Restrictions
//!
//! What a ring does never passes a filter of system calls. So a ring is restricted before it is
//! enabled: it reads, writes, syncs and deallocates, on the two files that it was made for, and the
//! kernel refuses everything else with EACCES for as long as the ring exists.
#![expect(
    unsafe_code,
    reason = "the kernel is handed addresses of buffers; this module keeps them alive"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use log::{debug, error};

use super::channel::{Data, deallocated};
use super::sys::{DEALLOCATE_MODE, Event, allow, forbid};
use super::{Completion, IoBuf, Op, Token};

/// Most bytes of one transfer: below the kernel's own bound (2 GiB less a page) and a multiple of
/// every alignment. What is longer goes out in parts.
const MAX_TRANSFER: usize = 1 << 30;

/// How often an operation may come back undone with EINTR or EAGAIN before that is its result.
/// Both are rare and pass; a medium that says nothing else must not keep a worker busy for ever.
const MAX_RETRIES: u8 = 100;

/// How long a ring that is dropped waits for what the kernel holds: longer than a disk that
/// answers at all takes (30 s is the time-out of Linux' own drivers), and not for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(45);

/// Between two attempts to submit while the kernel has no memory for more.
const PAUSE: Duration = Duration::from_millis(1);

/// Most operations at once in a ring: the kernel's bound is eight times higher, and a disk that
/// is not busy with so many will not be busier with more.
const MAX_DEPTH: u32 = 4096;

/// Reads after which a reap leaves the rest to the next one. They are to be decrypted, a burst of them takes as
/// long as a disk takes for a few, and whoever waits for the first need not wait for the last.
const READS_AT_ONCE: usize = 8;

/// Bytes above which a read waits for its neighbours: they may be one for the disk, which saves more than the disk
/// loses meanwhile. (What a write waits for is the encryption of others.)
const SMALL: usize = 32 << 10;

/// Every so many reaps that find nothing the event is cleared once more: it may have fired for
/// what an earlier reap took already, and would keep its owner's epoll from sleeping.
const IDLE_REAPS_PER_CLEAR: u32 = 8;

/// The places of the files in the ring's table.
const DATA: Fixed = Fixed(0);
const METADATA: Fixed = Fixed(1);

/// `IORING_UNREGISTER_FILES` of the kernel's interface: what may be called of a ring that is enabled, see
/// [`Ring`]'s `drop`.
const UNREGISTER_FILES: u8 = 3;

/// An operation that the ring holds.
#[derive(Debug)]
struct Slot {
    /// `None`: the slot is free.
    op: Option<Op>,
    token: Token,
    /// Bytes transferred already.
    done: usize,
    retries: u8,
}

impl Slot {
    fn is_read(&self) -> bool {
        matches!(self.op, Some(Op::Read { .. } | Op::ReadMetadata { .. }))
    }
}

/// An io_uring for the data of one file.
pub(super) struct Ring {
    ring: IoUring,
    event: Event,
    data: Arc<Data>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots whose entries the kernel has not taken yet, in order.
    queued: VecDeque<u32>,
    /// Operations that wait for a slot, with what was transferred of them already.
    line: VecDeque<(Op, Token, usize)>,
    /// Finished without the kernel's doing.
    failed: Vec<Completion>,
    /// The ring is made disabled and enabled by whoever uses it first: that thread is its issuer.
    enabled: bool,
    /// Its thread may register nothing by the time it goes.
    kept: bool,
    /// The errno after which the kernel takes nothing any more.
    broken: Option<i32>,
    idle_reaps: u32,
    /// The last reap left something to the next one.
    left_some: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight())
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// Makes a ring with the best set of flags that the kernel knows. It comes disabled.
fn build(entries: u32) -> io::Result<IoUring> {
    let unknown = |e: &io::Error| e.raw_os_error() == Some(libc::EINVAL);
    let deferred = IoUring::builder()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    let ring = match deferred {
        // Before Linux 6.1: completion work runs when the task next leaves the kernel.
        Err(e) if unknown(&e) => IoUring::builder()
            .setup_r_disabled()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries),
        other => other,
    };
    let ring = match ring {
        // Before Linux 5.19.
        Err(e) if unknown(&e) => IoUring::builder().setup_r_disabled().build(entries),
        other => other,
    }?;
    if !ring.params().is_feature_ext_arg() {
        // Before Linux 5.11 no wait can have a time-out; such a kernel counts as having no ring.
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    Ok(ring)
}

impl Ring {
    /// A ring for up to `depth` operations at once.
    pub(super) fn new(data: Arc<Data>, depth: u32) -> io::Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        let ring = build(depth)?;
        let event = Event::new()?;
        ring.submitter().register_eventfd(event.fd().as_raw_fd())?;
        let fds = [data.file().as_raw_fd(), data.metadata().as_raw_fd()];
        // Registered, the files need no reference counting by each operation, and are all that the
        // ring knows.
        ring.submitter().register_files(&fds)?;
        restrict(&ring)?;
        let slot = || Slot {
            op: None,
            token: 0,
            done: 0,
            retries: 0,
        };
        Ok(Self {
            ring,
            event,
            data,
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..depth).rev().collect(),
            queued: VecDeque::with_capacity(depth as usize),
            line: VecDeque::with_capacity(depth as usize),
            failed: Vec::with_capacity(depth as usize),
            enabled: false,
            kept: false,
            broken: None,
            idle_reaps: 0,
            left_some: false,
        })
    }

    /// Makes this thread the ring's issuer now: later it may register nothing with the kernel.
    pub(super) fn keep(&mut self) -> io::Result<()> {
        self.kept = true;
        self.enable()
    }

    fn enable(&mut self) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        Ok(())
    }

    /// Whether it is for operations on this data.
    pub(super) fn is_of(&self, data: &Arc<Data>) -> bool {
        Arc::ptr_eq(&self.data, data)
    }

    /// Ends what is under way; `false` if the ring is of no use afterwards.
    pub(super) fn come_to_rest(&mut self) -> bool {
        self.line.clear();
        if !self.enabled {
            // The kernel has seen nothing of what is queued.
            return self.free.len() == self.slots.len();
        }
        let mut done = Vec::new();
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while self.free.len() < self.slots.len() {
            self.wait(deadline.saturating_duration_since(Instant::now()));
            self.reap(&mut done);
            done.clear();
            let held = self.slots.len() - self.free.len();
            if held > 0 && (self.broken.is_some() || Instant::now() >= deadline) {
                self.broken.get_or_insert(libc::ETIMEDOUT);
                return false;
            }
        }
        self.failed.clear();
        self.broken.is_none()
    }

    /// Takes an operation over, of which `done` bytes are transferred already.
    pub(super) fn submit(&mut self, op: Op, token: Token, done: usize) {
        if let Some(errno) = self.broken {
            let result = Err(io::Error::from_raw_os_error(errno));
            self.failed.push(finished(op, token, result));
            return;
        }
        let waits = matches!(&op, Op::Read { buf, .. } if buf.len() > SMALL);
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Slot {
                    op: Some(op),
                    token,
                    done,
                    retries: 0,
                };
                self.enqueue(index);
            }
            None => self.line.push_back((op, token, done)),
        }
        // Who enters first owns the ring: that is for `kick` to do.
        if self.enabled && !waits && self.queued.len() > self.busy_with() {
            self.kick();
        }
    }

    /// Operations that the kernel has and, as far as it is known here, has not finished.
    fn busy_with(&mut self) -> usize {
        let over = self.free.len() + self.queued.len() + self.ring.completion().len();
        self.slots.len().saturating_sub(over)
    }

    /// Operations that were submitted and not reaped.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.line.len() + self.failed.len()
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.fd()
    }

    /// Whether [`Ring::reap`] would find something.
    pub(super) fn is_ready(&mut self) -> bool {
        self.enabled
            && (!self.failed.is_empty() || !self.ring.completion().is_empty() || self.has_work())
    }

    /// Hands the kernel what is queued.
    pub(super) fn kick(&mut self) {
        if !self.queued.is_empty() {
            self.enter(None);
        }
    }

    /// Moves what has finished to the end of `done`, or the first of it: see [`Ring::is_ready`].
    pub(super) fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.failed);
        if !self.enabled {
            return;
        }
        if self.has_work() {
            self.enter(None);
        }
        let nothing = self.ring.completion().is_empty();
        self.idle_reaps = if nothing {
            self.idle_reaps.wrapping_add(1)
        } else {
            0
        };
        if self.idle_reaps % IDLE_REAPS_PER_CLEAR <= 1 && !self.left_some {
            self.event.clear();
            if self.has_work() {
                self.enter(None);
            }
        }
        let mut reads = 0;
        self.left_some = false;
        loop {
            if reads >= READS_AT_ONCE {
                self.left_some = true;
                break;
            }
            let next = self.ring.completion().next();
            let Some(entry) = next else { break };
            // The number that this module gave the entry: a slot's, so it fits.
            let index = u32::try_from(entry.user_data()).unwrap_or(u32::MAX);
            let is_read = self.slots.get(index as usize).is_some_and(Slot::is_read);
            if let Some(completion) = self.settle(index, entry.result()) {
                reads += usize::from(is_read);
                done.push(completion);
            }
        }
        // Retries, rests and those that waited in line: nobody else would kick them.
        self.kick();
        done.append(&mut self.failed);
    }

    /// Blocks until something has finished, or for `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let nothing_to_wait_for = self.slots.len() == self.free.len() || self.broken.is_some();
            if nothing_to_wait_for || !self.failed.is_empty() || !self.ring.completion().is_empty()
            {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.enter(Some(left));
            if left.is_zero() {
                return;
            }
            if !self.queued.is_empty() {
                // The kernel was short of memory; it needs a moment, not more calls.
                std::thread::sleep(PAUSE.min(left));
            }
        }
    }

    /// Whether the kernel has completions that it makes out on entry only.
    fn has_work(&mut self) -> bool {
        let submission = self.ring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Puts the entry of a slot, or of the rest of it, into the ring.
    fn enqueue(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let Some(op) = &mut slot.op else { return };
        let entry = entry(op, slot.done).user_data(index.into());
        // SAFETY: the file is open and the memory that the entry names belongs to the operation in
        // the slot. The slot keeps both from being freed or used: it gives the operation up only
        // after the kernel's completion, or with a ring that will not be entered again while the
        // kernel has not taken the entry, and `drop` leaks what the kernel might hold still.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => self.queued.push_back(index),
            // Cannot be, with one entry a slot; were it so, the operation was not begun.
            Err(_) => self.fail(index, libc::EBUSY),
        }
    }

    /// Submits what is queued, lets the kernel make out completions, and with a `wait` sleeps
    /// until there is one or the time is over.
    fn enter(&mut self, wait: Option<Duration>) {
        if self.broken.is_some() {
            return;
        }
        if let Err(e) = self.enable() {
            return self.break_down(&e);
        }
        let entered = match wait {
            None => self.ring.submitter().submit(),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                self.ring.submitter().submit_with_args(1, &args)
            }
        };
        let left = self.ring.submission().len();
        while self.queued.len() > left {
            let taken = self.queued.pop_front();
            if let Some(index) = taken
                && let Some(buf) = self.slots[index as usize].op.as_ref().and_then(buffer)
            {
                forbid(buf);
            }
        }
        let Err(e) = entered else { return };
        match e.raw_os_error() {
            // The time is over.
            Some(libc::ETIME) => {}
            // A signal, no memory, or completions to be taken first. Work may be left undone whose
            // event was cleared already: the owner comes back for it.
            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => self.event.raise(),
            _ => self.break_down(&e),
        }
    }

    /// The kernel takes nothing any more: what it has not taken fails now and from now on.
    fn break_down(&mut self, e: &io::Error) {
        error!("io_uring: cannot submit, giving this channel up: {e}");
        let errno = e.raw_os_error().unwrap_or(libc::EIO);
        self.broken = Some(errno);
        while let Some(index) = self.queued.pop_front() {
            self.fail(index, errno);
        }
        for (op, token, _) in self.line.drain(..) {
            let result = Err(io::Error::from_raw_os_error(errno));
            self.failed.push(finished(op, token, result));
        }
        self.event.raise();
    }

    fn fail(&mut self, index: u32, errno: i32) {
        if let Some(op) = self.slots[index as usize].op.take() {
            let token = self.slots[index as usize].token;
            let result = Err(io::Error::from_raw_os_error(errno));
            self.failed.push(finished(op, token, result));
            self.free.push(index);
        }
    }

    /// Takes the kernel's answer for a slot; the completion, unless the operation goes on.
    fn settle(&mut self, index: u32, answer: i32) -> Option<Completion> {
        let slot = self.slots.get_mut(index as usize)?;
        let verdict = judge(slot, answer, self.data.alignment());
        let result = match verdict {
            Verdict::Finished(result) => result,
            Verdict::GoesOn if self.broken.is_none() => {
                self.enqueue(index);
                return None;
            }
            Verdict::GoesOn => Err(io::Error::from_raw_os_error(libc::EIO)),
        };
        let op = slot.op.take()?;
        let completion = finished(op, slot.token, result);
        self.free.push(index);
        if let Some((op, token, done)) = self.line.pop_front() {
            self.submit(op, token, done);
        }
        Some(completion)
    }
}

/// Leaves a ring that is not enabled yet what this module does with it, for good.
fn restrict(ring: &IoUring) -> io::Result<()> {
    let fixed = squeue::Flags::FIXED_FILE.bits();
    let mut rules = [
        Restriction::sqe_op(opcode::Read::CODE),
        Restriction::sqe_op(opcode::Write::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
        Restriction::sqe_flags_allowed(fixed),
        Restriction::sqe_flags_required(fixed),
        Restriction::register_op(UNREGISTER_FILES),
    ];
    ring.submitter().register_restrictions(&mut rules)
}

/// The entry for what an operation still has to do.
fn entry(op: &mut Op, done: usize) -> squeue::Entry {
    let file = match op {
        Op::ReadMetadata { .. } => METADATA,
        _ => DATA,
    };
    let part = |buf: &mut IoBuf| {
        let rest = buf.get_mut(done..).unwrap_or_default();
        let len = rest.len().min(MAX_TRANSFER);
        // MAX_TRANSFER fits.
        (rest.as_mut_ptr(), u32::try_from(len).unwrap_or(0))
    };
    match op {
        Op::Read { offset, buf } | Op::ReadMetadata { offset, buf } => {
            let (memory, len) = part(buf);
            opcode::Read::new(file, memory, len)
                .offset(*offset + done as u64)
                .build()
        }
        Op::Write { offset, buf } => {
            let (memory, len) = part(buf);
            opcode::Write::new(file, memory, len)
                .offset(*offset + done as u64)
                .build()
        }
        Op::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        Op::Deallocate { offset, len } => opcode::Fallocate::new(file, *len)
            .offset(*offset)
            .mode(DEALLOCATE_MODE)
            .build(),
    }
}

#[derive(Debug)]
enum Verdict {
    Finished(io::Result<()>),
    /// The rest of it, or all of it again, is to be submitted.
    GoesOn,
}

/// What the kernel's answer means for the operation in a slot.
fn judge(slot: &mut Slot, answer: i32, alignment: u64) -> Verdict {
    let Ok(transferred) = usize::try_from(answer) else {
        let errno = -answer;
        let passing = errno == libc::EINTR || errno == libc::EAGAIN;
        if passing && slot.retries < MAX_RETRIES {
            slot.retries += 1;
            return Verdict::GoesOn;
        }
        let failure = Err(io::Error::from_raw_os_error(errno));
        return Verdict::Finished(match slot.op {
            Some(Op::Deallocate { .. }) => deallocated(failure),
            _ => failure,
        });
    };
    let (len, ended) = match &slot.op {
        Some(Op::Read { buf, .. } | Op::ReadMetadata { buf, .. }) => {
            (buf.len(), io::ErrorKind::UnexpectedEof)
        }
        Some(Op::Write { buf, .. }) => (buf.len(), io::ErrorKind::WriteZero),
        Some(Op::Sync | Op::Deallocate { .. }) | None => return Verdict::Finished(Ok(())),
    };
    if slot.done + transferred >= len {
        return Verdict::Finished(Ok(()));
    }
    // The rest must begin where direct I/O can. A transfer of less than that is no progress: it
    // met the end of the image.
    let unit = usize::try_from(alignment).unwrap_or(1);
    let progress = transferred / unit * unit;
    if progress == 0 {
        return Verdict::Finished(Err(ended.into()));
    }
    slot.done += progress;
    Verdict::GoesOn
}

/// What the kernel reads or writes meanwhile.
fn buffer(op: &Op) -> Option<&IoBuf> {
    match op {
        Op::Read { buf, .. } | Op::ReadMetadata { buf, .. } | Op::Write { buf, .. } => Some(buf),
        Op::Sync | Op::Deallocate { .. } => None,
    }
}

/// The operation is nobody's but the caller's again.
fn finished(op: Op, token: Token, result: io::Result<()>) -> Completion {
    if let Some(buf) = buffer(&op) {
        allow(buf);
    }
    let buf = match op {
        Op::Read { buf, .. } | Op::ReadMetadata { buf, .. } | Op::Write { buf, .. } => Some(buf),
        Op::Sync | Op::Deallocate { .. } => None,
    };
    Completion { token, result, buf }
}

impl Drop for Ring {
    /// Waits for what the kernel holds: to close a ring does not end what was begun.
    fn drop(&mut self) {
        self.come_to_rest();
        let held = self.slots.len() - self.free.len();
        if self.enabled && held > 0 {
            error!("io_uring: {held} operations are stuck in the kernel: their buffers are lost");
            std::mem::forget(std::mem::take(&mut self.slots));
            return;
        }
        // The ring itself goes in the background: the file, and its lock, go now. (One that a thread has
        // kept goes with the process, and who opens the image next waits for that lock.)
        if !self.kept
            && let Err(e) = self.ring.submitter().unregister_files()
        {
            debug!("io_uring: file not unregistered: {e}");
        }
    }
}

#[cfg(test)]
mod tests;
