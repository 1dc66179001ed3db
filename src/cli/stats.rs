//! What `serve --stats` prints: a line of JSON every so often, and one of everything at the end.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use log::warn;
use serde_json::{Value, json};

use crate::queue::stats::{Batches, Interval, QueueStats};
use crate::sandbox::{Sandbox, Thread};

use super::confine::start_thread;
use super::error::CliError;

/// How long the end of the daemon waits for the last lines: whoever reads them may have stopped reading.
const LAST_LINES_PATIENCE: Duration = Duration::from_secs(2);
/// Nanoseconds of a microsecond.
const MICROSECOND: f64 = 1000.0;

/// Prints what the queues do, in a thread of its own.
#[derive(Debug)]
pub(super) struct Printer {
    end: Sender<()>,
    /// Closed when the last line is out.
    ended: Receiver<()>,
}

impl Printer {
    /// Prints to `out` what `queues` counted, every time that `every` is over.
    pub(super) fn start(
        queues: Vec<Arc<QueueStats>>,
        every: Duration,
        out: impl Write + Send + 'static,
        sandbox: &Arc<Sandbox>,
    ) -> Result<Self, CliError> {
        let mut report = Report::new(queues, out)?;
        let (end, asked_to_end) = channel();
        let (last_line, ended) = channel();
        start_thread("stats", sandbox, Thread::Stats, move || {
            if let Err(e) = report.run(every, &asked_to_end) {
                warn!("no more statistics: {e}");
            }
            drop::<Sender<()>>(last_line);
        })?;
        Ok(Self { end, ended })
    }

    /// Has the rest printed, and the total.
    pub(super) fn finish(self) {
        drop(self.end);
        if self.ended.recv_timeout(LAST_LINES_PATIENCE) == Err(RecvTimeoutError::Timeout) {
            warn!("nobody reads the statistics: the last lines are lost");
        }
    }
}

/// Lines about queues, and what they are made of.
struct Report<W> {
    queues: Vec<Arc<QueueStats>>,
    totals: Vec<Interval>,
    /// Goes in turn to each queue, in exchange for what that counted.
    spare: Interval,
    begun: Instant,
    /// When the last line was made.
    last: Instant,
    out: W,
}

impl<W: Write> Report<W> {
    fn new(queues: Vec<Arc<QueueStats>>, out: W) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            totals: queues
                .iter()
                .map(|_| Interval::new())
                .collect::<io::Result<_>>()?,
            queues,
            spare: Interval::new()?,
            begun: now,
            last: now,
            out,
        })
    }

    fn run(&mut self, every: Duration, end: &Receiver<()>) -> io::Result<()> {
        let mut next = self.begun + every;
        while end.recv_timeout(next.saturating_duration_since(Instant::now()))
            == Err(RecvTimeoutError::Timeout)
        {
            self.interval()?;
            // A line that came late makes the next interval short and not all that follow late; one that
            // was held up for longer than an interval is not made up for.
            next = (next + every).max(Instant::now());
        }
        self.interval()?;
        self.total()
    }

    /// Prints what was counted since the last line.
    fn interval(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.last = now;
        let mut lines = Vec::with_capacity(self.queues.len());
        for (queue, total) in self.queues.iter().zip(&mut self.totals) {
            queue.take(&mut self.spare);
            total.add(&self.spare)?;
            lines.push(facts(lines.len(), &self.spare, seconds));
        }
        self.print("interval", seconds, &lines)
    }

    /// Prints what all lines add up to.
    fn total(&mut self) -> io::Result<()> {
        let seconds = (self.last - self.begun).as_secs_f64();
        let totals = self.totals.iter().enumerate();
        let lines: Vec<Value> = totals
            .map(|(index, total)| facts(index, total, seconds))
            .collect();
        self.print("total", seconds, &lines)
    }

    fn print(&mut self, what: &str, seconds: f64, queues: &[Value]) -> io::Result<()> {
        let time = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let line = json!({
            "stats": what,
            "unix_time": rounded(time.as_secs_f64()),
            "seconds": rounded(seconds),
            "queues": queues,
        });
        // One call, so that a reader never sees half a line.
        self.out.write_all(format!("{line}\n").as_bytes())?;
        self.out.flush()
    }
}

fn facts(queue: usize, interval: &Interval, seconds: f64) -> Value {
    let Interval { counts, latency } = interval;
    json!({
        "queue": queue,
        "iops": rounded(per(as_f64(counts.requests()), seconds)),
        "requests": counts.requests(),
        "reads": counts.reads.requests,
        "writes": counts.writes.requests,
        "appends": counts.appends.requests,
        "flushes": counts.flushes,
        "others": counts.others,
        "errors": counts.errors,
        "malformed": counts.malformed,
        "read_bytes": counts.reads.bytes,
        "written_bytes": counts.writes.bytes + counts.appends.bytes,
        "latency_us": latency_facts(latency),
        "batches": batch_facts(counts.batches),
        "notifications": counts.notifications,
        "keyslots": {
            "hits": counts.channel.key_hits,
            "misses": counts.channel.key_misses,
        },
        "tags": {
            "cache_hits": counts.channel.tag_hits,
            "slot_reads": counts.channel.slot_reads,
        },
    })
}

/// All of it `null` if there was no request.
fn latency_facts(latency: &Histogram<u64>) -> Value {
    let microseconds = |nanoseconds: f64| match latency.is_empty() {
        true => Value::Null,
        false => json!(rounded(nanoseconds / MICROSECOND)),
    };
    let quantile = |quantile| microseconds(as_f64(latency.value_at_quantile(quantile)));
    json!({
        "mean": microseconds(latency.mean()),
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "p99.9": quantile(0.999),
        "max": microseconds(as_f64(latency.max())),
    })
}

/// How many chains were taken at once.
fn batch_facts(batches: Batches) -> Value {
    json!({
        "count": batches.count,
        "mean": rounded(per(as_f64(batches.chains), as_f64(batches.count))),
        "max": batches.largest,
    })
}

/// 0 of nothing.
fn per(what: f64, of: f64) -> f64 {
    if of > 0.0 { what / of } else { 0.0 }
}

/// To three decimals, which a reader takes in.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a figure to look at: 53 bits are enough"
)]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use crate::queue::stats::Transfers;
    use crate::sandbox::Mode;

    use super::*;

    /// What was written, to be looked at from another thread.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn lines(&self) -> Vec<Value> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            let lines = text.lines();
            lines.map(|l| serde_json::from_str(l).unwrap()).collect()
        }
    }

    fn nothing() -> Arc<Sandbox> {
        Arc::new(Sandbox::confine(Mode::Off, None, None).unwrap())
    }

    fn queues(count: usize) -> Vec<Arc<QueueStats>> {
        (0..count)
            .map(|_| Arc::new(QueueStats::new().unwrap()))
            .collect()
    }

    #[test]
    fn facts_of_an_interval() {
        let mut interval = Interval::new().unwrap();
        let counts = &mut interval.counts;
        counts.reads = Transfers {
            requests: 96,
            bytes: 8192,
        };
        counts.writes = Transfers {
            requests: 1,
            bytes: 512,
        };
        counts.appends = Transfers {
            requests: 3,
            bytes: 1024,
        };
        counts.batches = Batches {
            count: 16,
            chains: 100,
            largest: 8,
        };
        for _ in 0..99 {
            interval.latency.saturating_record(10_000);
        }
        interval.latency.saturating_record(3_000_000);
        let facts = facts(3, &interval, 0.5);
        assert_eq!(facts["queue"], 3);
        assert_eq!(facts["requests"], 100);
        assert_eq!(facts["iops"], 200.0);
        assert_eq!(
            (&facts["read_bytes"], &facts["written_bytes"]),
            (&json!(8192), &json!(1536))
        );
        assert_eq!(
            facts["batches"],
            json!({"count": 16, "mean": 6.25, "max": 8})
        );
        let about = |name: &str, want: f64| {
            let got = facts["latency_us"][name].as_f64().unwrap();
            assert!((got / want - 1.0).abs() < 0.01, "{name}: {got}");
        };
        about("p50", 10.0);
        about("p99", 10.0);
        about("p99.9", 3000.0);
        about("max", 3000.0);
        about("mean", 39.9);
    }

    #[test]
    fn nothing_happened_is_no_latency_and_not_one_of_zero() {
        let facts = facts(0, &Interval::new().unwrap(), 0.0);
        assert_eq!(
            (&facts["iops"], &facts["requests"]),
            (&json!(0.0), &json!(0))
        );
        assert_eq!(facts["latency_us"]["p50"], Value::Null);
        assert_eq!(facts["latency_us"]["max"], Value::Null);
        assert_eq!(facts["batches"], json!({"count": 0, "mean": 0.0, "max": 0}));
    }

    #[test]
    fn lines_come_in_time_and_the_total_last() {
        const EVERY: Duration = Duration::from_millis(20);
        let out = Shared::default();
        let printer = Printer::start(queues(2), EVERY, out.clone(), &nothing()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while out.lines().len() < 3 {
            assert!(Instant::now() < deadline, "no lines");
            thread::sleep(EVERY);
        }
        printer.finish();
        let lines = out.lines();
        let (total, intervals) = lines.split_last().unwrap();
        assert_eq!(total["stats"], "total");
        assert!(intervals.iter().all(|line| line["stats"] == "interval"));
        assert!(intervals[0]["seconds"].as_f64().unwrap() >= EVERY.as_secs_f64() - 0.001);
        assert!(lines.iter().all(|line| line["queues"][1]["queue"] == 1));
        let seconds = |line: &Value| line["seconds"].as_f64().unwrap();
        let sum: f64 = intervals.iter().map(seconds).sum();
        assert!((sum - seconds(total)).abs() < 0.001 * as_f64(lines.len() as u64));
    }

    #[test]
    fn a_reader_that_went_away_ends_the_printing_and_nothing_else() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let printer =
            Printer::start(queues(1), Duration::from_millis(1), Closed, &nothing()).unwrap();
        let ended = printer.ended.recv_timeout(Duration::from_secs(20));
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
        printer.finish();
    }
}
