//! The stage on which cases are played: a disk, its daemon, a session; and the judge of what was seen.

use std::fmt;
use std::time::{Duration, Instant};

use crate::common::daemon::Rig;
use crate::common::disk::{SMALL, ZONE, ZONES};
use crate::common::frontend::{Frontend, Options};
use crate::common::memory::{GuestRam, Span};
use crate::common::queue::{Next, Queue, QueueError, RawDescriptor};
use crate::common::request::{Completion, Layout, POISON, Request, ZoneInfo, kind, status};
use crate::common::wire::{FLAG_NEED_REPLY, Wire, WireError, le64};

/// How long an answer may take that must come.
pub const SOON: Duration = Duration::from_secs(10);
/// How long to wait for an answer that should not come. Nothing is proved by its absence: the proof is that the queue
/// can be stopped and that the disk did not change.
pub const A_WHILE: Duration = Duration::from_millis(60);

/// Bytes of the plain disk.
const PLAIN_BYTES: usize = 4 << 20;
/// Bytes of the zoned disk, [`SMALL`].
const ZONED_BYTES: usize = 4 << 20;
/// Bytes of a read when the whole disk is compared.
const STRIDE: usize = 128 << 10;

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The chain came back: the status if one was written, and the used length.
    Answered(Option<u8>, u32),
    /// Nothing came back, and the queue could be stopped.
    Silent,
    /// The error event of the queue was raised.
    Stopped,
    /// The back-end closed the connection.
    Closed,
    /// The message was acknowledged with a failure.
    Nack(u64),
    /// The message was acknowledged or replied to.
    Taken,
    /// Something that no back-end may do.
    Wrong(String),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(Some(code), len) => write!(f, "status {code}, {len} bytes"),
            Self::Answered(None, len) => write!(f, "no status, {len} bytes"),
            Self::Silent => f.write_str("queue stopped"),
            Self::Stopped => f.write_str("queue stopped, error event"),
            Self::Closed => f.write_str("connection closed"),
            Self::Nack(code) => write!(f, "refused with {code}"),
            Self::Taken => f.write_str("taken"),
            Self::Wrong(what) => write!(f, "WRONG: {what}"),
        }
    }
}

/// What may come of a case.
#[derive(Clone, Debug)]
pub enum Want {
    /// This status.
    Status(u8),
    /// A status that says no, or nothing written at all.
    Failed,
    /// Handed back with nothing written, or the queue stops.
    NothingWritten,
    /// The queue stops.
    QueueStops,
    /// The message is not taken: a failure is told or the connection ends.
    NotTaken,
    /// The message is taken.
    Taken,
    /// Anything that is not wrong in itself.
    Anything,
}

impl Want {
    /// Whether this is what may come of it.
    pub fn allows(&self, seen: &Seen) -> bool {
        match (self, seen) {
            (_, Seen::Wrong(_)) => false,
            (Self::Anything, _)
            | (Self::NothingWritten, Seen::Answered(None, 0) | Seen::Silent | Seen::Stopped)
            | (Self::QueueStops, Seen::Silent | Seen::Stopped)
            | (Self::NotTaken, Seen::Closed | Seen::Nack(_))
            | (Self::Taken, Seen::Taken) => true,
            (Self::Status(want), Seen::Answered(Some(code), _)) => want == code,
            (Self::Failed, Seen::Answered(code, len)) => match code {
                Some(code) => *code != status::OK,
                None => *len == 0,
            },
            _ => false,
        }
    }
}

/// One thing that a hostile side does.
pub struct Case {
    /// Unique within its table.
    pub name: String,
    /// What may come of it.
    pub want: Want,
    /// Does it.
    pub act: Box<dyn Fn(&mut Stage) -> Seen>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.name, self.want)
    }
}

/// A row of a table.
pub fn case(
    name: impl Into<String>,
    want: Want,
    act: impl Fn(&mut Stage) -> Seen + 'static,
) -> Case {
    Case {
        name: name.into(),
        want,
        act: Box::new(act),
    }
}

/// What a disk shows: its readable bytes and its zones.
#[derive(PartialEq, Eq)]
struct Picture {
    data: Vec<u8>,
    zones: Vec<ZoneInfo>,
}

/// A disk, its daemon, a session with it.
pub struct Stage {
    /// The daemon and the image.
    pub rig: Rig,
    /// With zones.
    pub zoned: bool,
    session: Option<Frontend>,
    /// A case made the session for itself, and nobody knows what is left of its rings.
    spent: bool,
    picture: Picture,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("rig", &self.rig).finish()
    }
}

impl Stage {
    /// A plain disk of 4 MiB, its first blocks written.
    pub fn plain() -> Self {
        let mut f = Self::served(&["--size", "4M", "--plain"], false);
        for block in 0..16 {
            let data = vec![0x11 + block; 4096];
            assert_eq!(f.queue().write(u64::from(block) * 8, &data), status::OK);
        }
        f.look();
        f
    }

    /// The [`SMALL`] zoned disk: zone 0 (conventional) written in part, zone 2 written in part, zone 3 full, zone 4
    /// opened, the others empty.
    pub fn zoned() -> Self {
        let mut f = Self::served(&SMALL, true);
        let q = f.queue();
        assert_eq!(q.write(0, &[0x11; 8192]), status::OK);
        assert_eq!(q.append(2 * ZONE, &[0x22; 8192], 16).0, status::OK);
        for _ in 0..3 {
            assert_eq!(q.append(3 * ZONE, &[0x33; 65536], 16).0, status::OK);
        }
        assert_eq!(q.simple(kind::ZONE_OPEN, 4 * ZONE), status::OK);
        f.look();
        f
    }

    fn served(create: &[&str], zoned: bool) -> Self {
        let rig = Rig::new(create, &["--queues", "2", "--queue-size", "128"]);
        Self {
            rig,
            zoned,
            session: None,
            spent: false,
            picture: Picture {
                data: Vec::new(),
                zones: Vec::new(),
            },
        }
    }

    /// The session; a new one if there is none.
    pub fn session(&mut self) -> &mut Frontend {
        let socket = self.rig.socket();
        self.session.get_or_insert_with(|| Frontend::open(&socket))
    }

    /// A new session in place of the old one.
    pub fn fresh(&mut self) -> &mut Frontend {
        self.fresh_with(Options::default())
    }

    /// [`Stage::fresh`] with options.
    pub fn fresh_with(&mut self, options: Options) -> &mut Frontend {
        self.leave();
        self.spent = true;
        let socket = self.rig.socket();
        self.session.insert(Frontend::open_with(&socket, options))
    }

    /// A new session that negotiated and has neither memory nor queues.
    pub fn negotiated(&mut self) -> &mut Frontend {
        self.leave();
        let socket = self.rig.socket();
        let mut f = Frontend::negotiate(&socket, Options::default()).expect("a session");
        f.set_features().expect("features");
        self.session.insert(f)
    }

    /// Ends the session.
    pub fn leave(&mut self) {
        self.session = None;
    }

    /// The first queue of the session.
    pub fn queue(&mut self) -> &mut Queue {
        self.session().queue()
    }

    /// Notes what the disk shows now.
    pub fn look(&mut self) {
        self.picture = self.take_picture();
    }

    fn take_picture(&mut self) -> Picture {
        let (zoned, len) = (self.zoned, self.disk_bytes());
        let q = self.queue();
        let mut data = Vec::with_capacity(len);
        for at in (0..len).step_by(STRIDE) {
            data.extend_from_slice(&q.read_ok(at as u64 / 512, STRIDE));
        }
        let zones = if zoned { q.zones(ZONES) } else { Vec::new() };
        Picture { data, zones }
    }

    fn disk_bytes(&self) -> usize {
        if self.zoned { ZONED_BYTES } else { PLAIN_BYTES }
    }

    /// Processor time of the daemon so far.
    pub fn cpu_time(&self) -> Duration {
        let pid = self.rig.daemon.as_ref().expect("running").pid();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        let (_, after_name) = stat.rsplit_once(')').expect("a name");
        let fields = after_name.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.map(|f| f.parse::<u64>().expect("a number")).sum();
        // USER_HZ is 100 on every Linux.
        Duration::from_millis(ticks * 10)
    }

    /// Plays a case and judges it. What panics in it (an answer that stays away) is wrong like all else.
    fn play(&mut self, case: &Case) -> (Seen, Result<(), String>) {
        let act = std::panic::AssertUnwindSafe(|| (case.act)(self));
        let seen = std::panic::catch_unwind(act).unwrap_or_else(|why| Seen::Wrong(message(&*why)));
        if self.spent || !matches!(seen, Seen::Answered(..)) {
            self.leave();
            self.spent = false;
        }
        let alive = std::panic::AssertUnwindSafe(|| self.is_alive());
        let alive = std::panic::catch_unwind(alive).unwrap_or_else(|why| Err(message(&*why)));
        if alive.is_err() {
            self.start_over();
        }
        let verdict = if case.want.allows(&seen) {
            alive
        } else {
            Err(format!("wanted {:?}", case.want))
        };
        (seen, verdict)
    }

    fn is_alive(&mut self) -> Result<(), String> {
        let daemon = self.rig.daemon.as_mut().expect("started");
        if !daemon.is_running() {
            return Err("the daemon died".into());
        }
        if self.take_picture() == self.picture {
            return Ok(());
        }
        Err("the disk changed".into())
    }

    /// A new daemon, so that one failure does not hide the next.
    fn start_over(&mut self) {
        self.leave();
        if let Some(daemon) = self.rig.daemon.take() {
            daemon.kill9();
        }
        self.rig.start();
        self.look();
    }

    /// Plays all cases. Panics with the list of those that went wrong.
    pub fn play_all(&mut self, class: &str, cases: &[Case]) {
        let show = std::env::var_os("ZONEVAULT_CASES").is_some();
        let mut wrong = Vec::new();
        for case in cases {
            let (seen, verdict) = self.play(case);
            if show {
                let verdict = verdict.as_ref().map_or_else(String::as_str, |()| "ok");
                println!("{class:<9} {:<66} {seen:<26} {verdict}", case.name);
            }
            if let Err(why) = verdict {
                wrong.push(format!("{}: {why}; seen: {seen}", case.name));
            }
        }
        println!("{class}: {} cases, {} wrong", cases.len(), wrong.len());
        assert!(wrong.is_empty(), "{class}:\n{}", wrong.join("\n"));
    }
}

/// What a panic said.
fn message(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| why.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// Buffers of hand-made requests on a disk whose first block holds 0x11: writing it once more changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Header of a write of the first block.
    pub write: Span,
    /// Header of a read of the first block.
    pub read: Span,
    /// What the first block holds.
    pub data: Span,
    /// Room for a block.
    pub space: Span,
    /// Room for a status, poisoned.
    pub status: Span,
}

impl Parts {
    /// Puts them into guest memory.
    pub fn new(q: &Queue) -> Self {
        Self {
            write: q.buffer(&Request::new(kind::OUT, 0).readable),
            read: q.buffer(&Request::new(kind::IN, 0).readable),
            data: q.buffer(&[0x11; 4096]),
            space: q.buffer(&[POISON; 4096]),
            status: q.buffer(&[POISON]),
        }
    }

    /// Gives them back.
    pub fn free(&self, ram: &GuestRam) {
        for span in [self.write, self.read, self.data, self.space, self.status] {
            ram.free(span);
        }
    }
}

/// A descriptor of a hand-made chain; the chain goes on in the one numbered `next`.
pub fn raw(span: Span, flags: u16, next: usize) -> RawDescriptor {
    RawDescriptor {
        addr: span.start,
        len: u32::try_from(span.len).expect("a descriptor's length"),
        flags,
        next: Next::Chain(next),
    }
}

/// Sends a hand-made chain and says what came of it; `status` is where its status would be.
pub fn send(q: &mut Queue, chain: &[RawDescriptor], status: Span) -> Seen {
    q.ram.write(status.start, &[POISON]);
    let ticket = q.submit_raw(chain).expect("room in the ring");
    q.kick();
    match q.wait(ticket, SOON) {
        Ok(done) => {
            let code = q.ram.read(Span::new(status.start, 1))[0];
            Seen::Answered((code != POISON).then_some(code), done.used_len)
        }
        Err(QueueError::TimedOut) => Seen::Silent,
        Err(QueueError::Stopped) => Seen::Stopped,
        Err(err) => Seen::Wrong(err.to_string()),
    }
}

/// What came of a request of the usual kind. Writable bytes beyond the used length are not looked at: a failed append
/// may leave anything where its sector would be.
pub fn seen(done: &Result<Completion, QueueError>) -> Seen {
    match done {
        Ok(done) => {
            let code = done.writable.last().copied().filter(|code| *code != POISON);
            Seen::Answered(code, done.used_len)
        }
        Err(QueueError::TimedOut) => Seen::Silent,
        Err(QueueError::Stopped) => Seen::Stopped,
        Err(err) => Seen::Wrong(err.to_string()),
    }
}

/// Sends a well-formed chain with any bytes in it.
pub fn ask(stage: &mut Stage, request: &Request, layout: &Layout) -> Seen {
    seen(&stage.queue().try_call(request, layout))
}

/// Sends a message that wants an acknowledgement or a reply and says what came of it.
pub fn tell(f: &mut Frontend, code: u32, body: &[u8], fds: &[i32]) -> Seen {
    match f.wire.send(code, FLAG_NEED_REPLY, body, fds) {
        Ok(()) => match heard(&mut f.wire, code) {
            Seen::Wrong(what) => Seen::Wrong(format!(
                "code {code}, {} bytes, {} descriptors: {what}",
                body.len(),
                fds.len()
            )),
            seen => seen,
        },
        Err(WireError::Closed) => Seen::Closed,
        Err(err) => Seen::Wrong(format!("sending: {err}")),
    }
}

/// The next message from the back-end, as an answer to `code`.
pub fn heard(wire: &mut Wire, code: u32) -> Seen {
    match wire.receive() {
        Ok(answer) if answer.request != code => Seen::Wrong(format!("{answer:?} to {code}")),
        Ok(answer) if answer.body.len() == 8 && !has_reply(code) => match le64(&answer.body, 0) {
            0 => Seen::Taken,
            refusal => Seen::Nack(refusal),
        },
        Ok(_) => Seen::Taken,
        Err(WireError::Closed) => Seen::Closed,
        Err(WireError::TimedOut) => Seen::Wrong("no answer".into()),
        Err(err) => Seen::Wrong(err.to_string()),
    }
}

/// Messages whose reply says something else than yes or no: features, vring base, queue number, config, inflight, slots,
/// status, shared objects and memory.
fn has_reply(code: u32) -> bool {
    [1, 11, 15, 17, 24, 31, 36, 40, 41, 44].contains(&code)
}

/// Whether a connection still answers; what it sends before that answer is not looked at.
pub fn still_there(wire: &mut Wire) -> Seen {
    const GET_FEATURES: u32 = 1;
    match wire.send(GET_FEATURES, 0, &[], &[]) {
        Ok(()) => {}
        Err(WireError::Closed) => return Seen::Closed,
        Err(err) => return Seen::Wrong(format!("sending: {err}")),
    }
    loop {
        match wire.receive() {
            Ok(answer) if answer.request == GET_FEATURES => return Seen::Taken,
            Ok(_) => {}
            Err(WireError::Closed) => return Seen::Closed,
            Err(err) => return Seen::Wrong(err.to_string()),
        }
    }
}

/// Waits until a queue stopped for `what` comes back at GET_VRING_BASE; says that nothing was answered if so.
pub fn stopped(f: &mut Frontend, at: usize) -> Seen {
    match f.stop_queue(at) {
        Ok(_) => Seen::Silent,
        Err(WireError::Closed) => Seen::Closed,
        Err(err) => Seen::Wrong(format!("the queue cannot be stopped: {err}")),
    }
}

/// Kicks and watches the used ring for a while; then stops the queue, which must be possible. The first element that
/// came back is what was seen.
pub fn kick_and_see(f: &mut Frontend, status: Option<Span>) -> Seen {
    f.queue().force_kick();
    let deadline = Instant::now() + A_WHILE;
    while f.queue().ring.ready() == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let silent = stopped(f, 0);
    if silent != Seen::Silent {
        return silent;
    }
    let q = f.queue();
    let Some(used) = q.ring.pop() else {
        return Seen::Silent;
    };
    let code = status.map(|at| q.ram.read(Span::new(at.start, 1))[0]);
    Seen::Answered(code.filter(|code| *code != POISON), used.len)
}
