// Every history of up to so many steps, each killed after each of its stores.

use super::{InflightQueue, Past, Region};
use crate::geometry::{Blocks, Generation, ZoneIndex};
use crate::kept::File;
use crate::kept::volume::{Identity, Uuid};
use crate::kept::zone::{Change, Epoch, Intent};

/// Descriptors of the ring: the least that can be answered in another order than taken, and twice.
const SIZE: u16 = 2;
/// Steps of a history before it is killed, and after it was taken back.
const STEPS: usize = 9;
const STEPS_AFTER: usize = 3;
/// Indices wrap soon.
const FIRST: u16 = 0xffff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The guest offers this chain.
    Offer(u16),
    /// The daemon takes the next one.
    Take,
    /// It notes what this one is about to change.
    Note(u16),
    GiveBack(u16),
    /// It shows the guest what it gave back, and notes that.
    Publish,
}

/// A chain that the guest has not seen answered.
#[derive(Clone, Copy, Debug)]
struct Chain {
    head: u16,
    /// What it would change: no two are the same.
    intent: Intent,
    noted: bool,
    given_back: bool,
}

/// How things stand for who looks from outside.
#[derive(Clone, Debug, Default)]
struct View {
    /// Taken, in that order.
    taken: Vec<Chain>,
    /// Still in the ring.
    offered: Vec<Chain>,
    /// Of all histories of this guest.
    serial: u64,
    /// Answers that it has seen.
    seen: u16,
}

/// The daemon, and the file that outlives it.
struct Daemon {
    file: File,
    queue: InflightQueue,
}

fn disk() -> Identity {
    Identity {
        uuid: Uuid(1, 2),
        epoch: Epoch(1),
        last_epoch: Epoch(1),
    }
}

impl View {
    fn used(&self) -> u16 {
        FIRST.wrapping_add(self.seen)
    }

    fn available(&self) -> u16 {
        let outstanding = self.taken.len() + self.offered.len();
        self.used()
            .wrapping_add(u16::try_from(outstanding).expect("few"))
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut outstanding = self.taken.iter().chain(&self.offered);
        let free = (0..SIZE).filter(|&head| outstanding.clone().all(|chain| chain.head != head));
        steps.extend(free.map(Step::Offer));
        if !self.offered.is_empty() {
            steps.push(Step::Take);
        }
        for chain in self.taken.iter().filter(|chain| !chain.given_back) {
            if !chain.noted {
                steps.push(Step::Note(chain.head));
            }
            steps.push(Step::GiveBack(chain.head));
        }
        if outstanding.any(|chain| chain.given_back) {
            steps.push(Step::Publish);
        }
        steps
    }

    fn chain(&mut self, head: u16) -> &mut Chain {
        let mut taken = self.taken.iter_mut();
        taken.find(|chain| chain.head == head).expect("taken")
    }

    /// How things stand after a step that was done as a whole.
    fn after(&self, step: Step) -> Self {
        let mut view = self.clone();
        match step {
            Step::Offer(head) => {
                view.serial += 1;
                let change = Change::Write {
                    start: Blocks(view.serial),
                    count: Blocks(1),
                };
                view.offered.push(Chain {
                    head,
                    intent: Intent {
                        zone: ZoneIndex(3),
                        generation: Generation(4),
                        change,
                    },
                    noted: false,
                    given_back: false,
                });
            }
            Step::Take => {
                let chain = view.offered.remove(0);
                view.taken.push(chain);
            }
            Step::Note(head) => view.chain(head).noted = true,
            Step::GiveBack(head) => view.chain(head).given_back = true,
            Step::Publish => {
                let before = view.taken.len();
                view.taken.retain(|chain| !chain.given_back);
                view.seen += u16::try_from(before - view.taken.len()).expect("few");
            }
        }
        view
    }

    /// Holds what a daemon took back against how things stand; the daemon that this one was may have been
    /// killed in the middle of `step`.
    fn judge(&self, step: Option<Step>, next: u16, heads: &[(u16, Past)]) -> Self {
        let again: Vec<u16> = heads.iter().map(|&(head, _)| head).collect();
        let mut view = self.clone();
        if step == Some(Step::Take) && heads.len() > self.taken.len() {
            view = self.after(Step::Take);
        }
        let wanted: Vec<u16> = view.taken.iter().map(|chain| chain.head).collect();
        assert_eq!(again, wanted, "what is begun again");
        let left = view.available().wrapping_sub(next);
        assert_eq!(usize::from(left), view.offered.len(), "what is still in the ring");
        for (chain, &(_, past)) in view.taken.iter_mut().zip(heads) {
            chain.given_back = false;
            if step == Some(Step::Note(chain.head)) {
                chain.noted |= past != Past::Untouched;
            }
            let wanted = match chain.noted {
                true => Past::Intended(chain.intent),
                false => Past::Untouched,
            };
            assert_eq!(past, wanted, "what is known of {chain:?}");
        }
        view
    }
}

impl Daemon {
    fn first(view: &View) -> Self {
        let region = Region::create(1, SIZE, &disk()).expect("a region");
        let file = region.file().expect("its file");
        Self::second(file.bytes(), view, None).0
    }

    /// Takes back what is in `bytes`.
    fn second(bytes: Vec<u8>, view: &View, step: Option<Step>) -> (Self, View) {
        let file = File::of(bytes);
        let len = file.bytes().len() as u64;
        let region = Region::adopt(file.clone(), (0, len), 1, SIZE, &disk()).expect("its own");
        let mut queue = region.queue(0).expect("a queue");
        let resumed = queue.resume(SIZE, view.available(), view.used());
        let resumed = resumed.expect("it fits");
        let view = view.judge(step, resumed.next_available, &resumed.heads);
        (Self { file, queue }, view)
    }

    fn does(&mut self, view: &View, step: Step) {
        match step {
            Step::Offer(_) => {}
            Step::Take => self.queue.take(view.offered[0].head),
            Step::Note(head) => {
                let chain = view.taken.iter().find(|chain| chain.head == head);
                let intent = chain.expect("taken").intent;
                self.queue.intents().note(head, intent);
            }
            Step::GiveBack(head) => self.queue.give_back(head),
            Step::Publish => self.queue.published(view.after(step).used()),
        }
    }
}

/// A file as it is after each of these stores, and before all of them.
fn prefixes(before: &[u8], file: &File) -> Vec<Vec<u8>> {
    let mut bytes = before.to_vec();
    let mut all = vec![bytes.clone()];
    for (at, value) in file.take_stores() {
        bytes[at..at + value.len()].copy_from_slice(&value);
        all.push(bytes.clone());
    }
    assert_eq!(bytes, file.bytes());
    all
}

/// Histories that begin with `past`, and kills.
struct Count(u64, u64);

/// Takes `past` up again from the beginning, or from `begun`, and then one more step in each way.
fn go_on(begun: &(Vec<u8>, View), past: &mut Vec<Step>, left: usize, deaths: usize, count: &mut Count) {
    let (bytes, view) = begun;
    let (mut daemon, mut view) = Daemon::second(bytes.clone(), view, None);
    for &step in past.iter() {
        daemon.does(&view, step);
        view = view.after(step);
    }
    count.0 += 1;
    if left == 0 {
        return;
    }
    for step in view.steps() {
        let before = daemon.file.bytes();
        daemon.file.take_stores();
        daemon.does(&view, step);
        kill(&before, &daemon.file, &view, step, deaths, count);
        past.push(step);
        go_on(begun, past, left - 1, deaths, count);
        past.pop();
        // As before this step.
        (daemon, view) = Daemon::second(bytes.clone(), &begun.1, None);
        for &step in past.iter() {
            daemon.does(&view, step);
            view = view.after(step);
        }
    }
}

/// Kills a daemon in this step, after each store of it, and the one after it while it takes back.
fn kill(before: &[u8], file: &File, view: &View, step: Step, deaths: usize, count: &mut Count) {
    let mut moments: Vec<(Vec<u8>, View)> = Vec::new();
    if step == Step::Publish {
        // The guest sees it before any of that is noted.
        moments.push((before.to_vec(), view.clone()));
    }
    let seen = match step {
        Step::Publish | Step::Offer(_) => view.after(step),
        _ => view.clone(),
    };
    let all = prefixes(before, file);
    let last = all.len() - 1;
    for (at, bytes) in all.into_iter().enumerate() {
        let whole = at == last;
        moments.push((bytes, if whole { view.after(step) } else { seen.clone() }));
    }
    for (bytes, view) in moments {
        count.1 += 1;
        let (second, judged) = Daemon::second(bytes.clone(), &view, Some(step));
        for halfway in prefixes(&bytes, &second.file) {
            count.1 += 1;
            Daemon::second(halfway, &judged, None);
        }
        if deaths > 0 {
            let begun = (second.file.bytes(), judged);
            go_on(&begun, &mut Vec::new(), STEPS_AFTER, deaths - 1, count);
        }
    }
}

pub(crate) fn all() -> (u64, u64) {
    let view = View::default();
    let daemon = Daemon::first(&view);
    let mut count = Count(0, 0);
    go_on(&(daemon.file.bytes(), view), &mut Vec::new(), STEPS, 1, &mut count);
    (count.0, count.1)
}
