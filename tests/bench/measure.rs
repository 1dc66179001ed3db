//! How the benchmarks measure: CPU time of the thread, in turns, the median over rounds.
//!
//! Everybody takes a turn in each round: on a shared machine clocks and neighbours change by a third
//! within a minute, and figures taken one after the other, as benchmark frameworks do, would compare
//! the weather. Data is hot in the cache and worked on in place.
#![expect(unsafe_code, reason = "CPU time of the thread has no safe call")]

use std::env;
use std::time::Duration;

/// Most bytes that a turn works on at a time.
pub const LONGEST: usize = 64 << 10;

/// Rounds of a full run, of which the median counts.
const ROUNDS: usize = 5;
/// CPU time that a turn of a full run takes.
const TURN: Duration = Duration::from_millis(100);

/// Whole cache lines, as the buffers of the disk are.
#[repr(align(4096))]
#[derive(Debug)]
pub struct Buffer(pub [u8; LONGEST]);

impl Buffer {
    /// Zeroes.
    pub fn new() -> Box<Self> {
        Box::new(Self([0; LONGEST]))
    }
}

/// How thorough a run is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds, of which the median counts.
    pub rounds: usize,
    /// CPU time of a turn.
    pub turn: Duration,
}

impl Pace {
    /// Cargo says `--bench` when it benches. Without, it tests: then a glimpse is enough, and the
    /// answer is `None`.
    pub fn full() -> Option<Self> {
        env::args()
            .any(|argument| argument == "--bench")
            .then_some(Self {
                rounds: ROUNDS,
                turn: TURN,
            })
    }

    /// Just enough to have run everything.
    pub const GLIMPSE: Self = Self {
        rounds: 1,
        turn: Duration::from_millis(1),
    };
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writing.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "clock_gettime");
    Duration::new(
        time.tv_sec.try_into().unwrap(),
        time.tv_nsec.try_into().unwrap(),
    )
}

/// GB/s of a function that works on `bytes` bytes; its argument counts the calls.
pub fn measure(turn: Duration, bytes: usize, mut work: impl FnMut(u64)) -> f64 {
    // Reading the clock costs a system call: not more often than every 256 KiB.
    let calls = u64::try_from(((256 << 10) / bytes).max(1)).unwrap();
    let start = cpu_time();
    let mut done = 0;
    loop {
        for call in 0..calls {
            work(done + call);
        }
        done += calls;
        let spent = cpu_time() - start;
        if spent >= turn {
            return f64::from(u32::try_from(done).unwrap())
                * f64::from(u32::try_from(bytes).unwrap())
                / spent.as_secs_f64()
                / 1e9;
        }
    }
}

/// The middle one.
pub fn median(figures: &mut [f64]) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}
