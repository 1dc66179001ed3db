//! The knobs of an image in memory.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::MemMedium;
use super::disk::{Candidate, Deallocation, Fate, kind_of, range_of};
use super::draw::Draw;
use super::fault::{Counts, Fault, Kind};
use super::moment::Moment;

/// An operation that is held in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldOp {
    /// Its name, for [`MemControl::release`]. Later operations have higher ones.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Where, in bytes; 0 of a sync.
    pub offset: u64,
    /// How much, in bytes; 0 of a sync.
    pub len: u64,
}

/// Something that a power cut may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsynced {
    /// The bytes, in whole sectors.
    pub range: Range<u64>,
    /// Whether it is in flight still (else it took effect, and is not synced).
    pub in_flight: bool,
}

impl From<&Candidate> for Unsynced {
    fn from(candidate: &Candidate) -> Self {
        Self {
            range: candidate.range(),
            in_flight: candidate.in_flight,
        }
    }
}

/// Makes an image in memory misbehave, and looks behind it. Clones turn the same knobs, from any
/// thread.
#[derive(Clone, Debug)]
pub struct MemControl {
    medium: MemMedium,
}

impl MemControl {
    pub(super) fn new(medium: MemMedium) -> Self {
        Self { medium }
    }

    // Order.

    /// From now on keeps operations of these kinds in flight until they are released; none: lets
    /// everything pass again (what is held stays held). Metadata operations cannot be held.
    pub fn hold(&self, kinds: &[Kind]) {
        self.medium.shared.disk.lock().holding = kinds.to_vec();
    }

    /// Whether reads are done as soon as they are wanted, as of what is in a page cache; at first they
    /// are not.
    pub fn read_at_once(&self, on: bool) {
        self.medium.shared.disk.lock().reads_at_once = on;
    }

    /// What is in flight, oldest first.
    pub fn held(&self) -> Vec<HeldOp> {
        let disk = self.medium.shared.disk.lock();
        let describe = |held: &super::disk::InFlight| {
            let (offset, len) = range_of(&held.op);
            HeldOp {
                id: held.id,
                kind: kind_of(&held.op),
                offset,
                len,
            }
        };
        disk.held.iter().map(describe).collect()
    }

    /// Waits until at least `count` operations are held; `false` if that takes longer than
    /// `timeout`.
    pub fn await_held(&self, count: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut disk = self.medium.shared.disk.lock();
        while disk.held.len() < count {
            let wait = self.medium.shared.changed.wait_until(&mut disk, deadline);
            if wait.timed_out() {
                return disk.held.len() >= count;
            }
        }
        true
    }

    /// Lets a held operation take effect and complete; `false` if there is none of that name.
    pub fn release(&self, id: u64) -> bool {
        self.release_as(id, None)
    }

    /// Lets a held operation fail with `errno`, with no effect.
    pub fn release_failing(&self, id: u64, errno: i32) -> bool {
        self.release_as(id, Some(errno))
    }

    /// Releases all that is held, oldest first. Says how many it were.
    pub fn release_all(&self) -> usize {
        let ids: Vec<u64> = self.held().iter().map(|held| held.id).collect();
        ids.into_iter().filter(|id| self.release(*id)).count()
    }

    /// Releases all that is held, in an order that `seed` draws. Says how many it were.
    pub fn release_shuffled(&self, seed: u64) -> usize {
        let mut ids: Vec<u64> = self.held().iter().map(|held| held.id).collect();
        Draw::new(seed).shuffle(&mut ids);
        ids.into_iter().filter(|id| self.release(*id)).count()
    }

    /// From now on shuffles the operations of every batch, in an order that `seed` draws; `None`:
    /// in order again.
    pub fn reorder(&self, seed: Option<u64>) {
        self.medium.shared.disk.lock().shuffle = seed.map(Draw::new);
    }

    fn release_as(&self, id: u64, errno: Option<i32>) -> bool {
        let released = self.medium.shared.disk.lock().release(id, errno);
        self.medium.shared.changed.notify_all();
        released
    }

    // Errors.

    /// Sets a fault for the `n`-th operation of that kind from now on (1: the next). It fires once.
    pub fn fail_nth(&self, kind: Kind, n: u64, fault: Fault) {
        self.medium.shared.disk.lock().traps.set_nth(kind, n, fault);
    }

    /// Sets a fault for every operation of that kind that touches these bytes.
    pub fn fail_range(&self, kind: Kind, range: Range<u64>, fault: Fault) {
        let mut disk = self.medium.shared.disk.lock();
        disk.traps.set_range(kind, range, fault);
    }

    /// Takes back every fault that was set.
    pub fn heal(&self) {
        self.medium.shared.disk.lock().traps.clear();
    }

    /// Chooses what a deallocation does to the bytes. At first: [`Deallocation::Zeroes`].
    pub fn set_deallocation(&self, mode: Deallocation) {
        self.medium.shared.disk.lock().set_deallocation(mode);
    }

    /// Has the kernel drop the pages that a failed sync left in doubt; `seed` draws which of them
    /// had reached the medium before.
    pub fn forget(&self, seed: u64) {
        let mut draw = Draw::new(seed);
        let mut disk = self.medium.shared.disk.lock();
        disk.forget(|| draw.below(2) == 0);
    }

    // Behind everybody's back.

    /// The bytes that a read would see, past all faults and counts.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.medium.shared.disk.lock().peek(offset, &mut bytes);
        bytes
    }

    /// Changes bytes on the medium and in every cache, as damage or an attacker would.
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) {
        self.medium.shared.disk.lock().overwrite(offset, bytes);
    }

    /// How often what happened.
    pub fn counts(&self) -> Counts {
        self.medium.shared.disk.lock().counts()
    }

    // Ends. This image goes on as if nothing had been: one moment has as many ends as are wanted.

    /// The image as it is now.
    pub fn moment(&self) -> Moment {
        self.medium.shared.disk.lock().moment()
    }

    /// From now on keeps the moment before every change and every sync, or stops that and throws
    /// away those that were not taken.
    pub fn record(&self, on: bool) {
        self.medium.shared.disk.lock().record(on);
    }

    /// The moments that were kept since the last call, oldest first.
    pub fn take_moments(&self) -> Vec<Moment> {
        self.medium.shared.disk.lock().take_moments()
    }

    /// What a power cut now could take, oldest first.
    pub fn unsynced(&self) -> Vec<Unsynced> {
        let moment = self.moment();
        moment.candidates().iter().map(Unsynced::from).collect()
    }

    /// The image as a power cut leaves it: which changes survive, whole or torn, and in what
    /// order, is drawn from `seed`.
    pub fn crash(&self, seed: u64) -> MemMedium {
        self.moment().crash(seed)
    }

    /// The image as a power cut leaves it that treats each change as `decide` says; survivors in
    /// the order in which they took effect.
    pub fn crash_with(&self, decide: impl FnMut(&Unsynced) -> Fate) -> MemMedium {
        self.moment().crash_with(decide)
    }

    /// The image as a kill of the process leaves it. Nothing of what is in flight happens.
    pub fn kill(&self) -> MemMedium {
        self.moment().kill_with(|| false)
    }

    /// The same, with that of what is in flight happening which `seed` draws.
    pub fn kill_mid_flight(&self, seed: u64) -> MemMedium {
        let mut draw = Draw::new(seed);
        self.moment().kill_with(|| draw.below(2) == 0)
    }
}
