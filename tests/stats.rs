//! `serve --stats`: what it prints of known requests adds up.

#[cfg(test)]
pub mod common;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::Value;

    use crate::common::daemon::{Daemon, Image};
    use crate::common::disk::{ZONE, block};
    use crate::common::frontend::{Frontend, Options};
    use crate::common::queue::Queue;
    use crate::common::request::{Layout, Request, kind, status};

    const PATIENCE: Duration = Duration::from_secs(30);
    /// A sequential zone, and the others of the disk below it are not written to.
    const FIRST: u64 = 4 * ZONE;

    const TAGGED: [&str; 6] = [
        "--size",
        "4M",
        "--zone-size",
        "256K",
        "--cipher",
        "aes-256-gcm",
    ];

    /// The lines of statistics of a log.
    fn lines(log: &str) -> Vec<Value> {
        log.lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn call(queue: &mut Queue, request: &Request, want: u8) {
        let ticket = queue.submit(request, &Layout::indirect()).unwrap();
        // Before the answer can be there: one that comes before it is wanted is not told of, nor counted.
        queue.ring.arm();
        queue.kick();
        let done = queue.wait(ticket, PATIENCE).unwrap();
        assert_eq!(done.status(), want, "{request:?}");
    }

    fn number(facts: &Value, path: &str) -> u64 {
        let found = facts.pointer(path).and_then(Value::as_u64);
        found.unwrap_or_else(|| panic!("{path} of {facts}"))
    }

    /// What the intervals say of a queue, together.
    fn sum(intervals: &[Value], queue: usize, path: &str) -> u64 {
        let facts = intervals.iter().map(|line| &line["queues"][queue]);
        facts.map(|facts| number(facts, path)).sum()
    }

    /// 5 appends, 3 writes behind them, 4 reads, 2 flushes, an id, a report, and 2 that must fail.
    fn first_queue(queue: &mut Queue) {
        for _ in 0..5 {
            call(queue, &Request::append(FIRST, &block(1), 9), status::OK);
        }
        for n in 5..8 {
            let write = Request::write(FIRST + n * 8, &block(2));
            call(queue, &write, status::OK);
        }
        for n in 0..4 {
            call(queue, &Request::read(FIRST + n * 16, 8192), status::OK);
        }
        for _ in 0..2 {
            call(queue, &Request::new(kind::FLUSH, 0), status::OK);
        }
        call(
            queue,
            &Request::new(kind::GET_ID, 0).with_space(20),
            status::OK,
        );
        call(queue, &Request::report(0, 4096), status::OK);
        let elsewhere = Request::write(FIRST + 100 * 8, &block(3));
        call(queue, &elsewhere, status::UNALIGNED_WP);
        call(queue, &Request::read(1 << 40, 4096), status::IOERR);
    }

    /// 12 reads at once.
    fn second_queue(queue: &mut Queue) {
        for _ in 0..12 {
            let read = Request::read(FIRST, 4096);
            queue.submit(&read, &Layout::indirect()).unwrap();
        }
        queue.kick();
        for _ in 0..12 {
            assert_eq!(queue.reap(PATIENCE).unwrap().status(), status::OK);
        }
    }

    fn check_first(facts: &Value) {
        let expected = [
            ("/requests", 18),
            ("/appends", 5),
            ("/writes", 4),
            ("/reads", 4),
            ("/flushes", 2),
            // The id, the report, and the read that is no valid request.
            ("/others", 3),
            ("/errors", 2),
            ("/malformed", 0),
            ("/read_bytes", 4 * 8192),
            ("/written_bytes", 8 * 4096),
            // One at a time.
            ("/batches/count", 18),
            ("/batches/max", 1),
            ("/notifications", 18),
            // The zone's key is derived once, and looked up for each of 8 writes and 4 reads.
            ("/keyslots/misses", 1),
            ("/keyslots/hits", 11),
        ];
        for (path, count) in expected {
            assert_eq!(number(facts, path), count, "{path} of {facts}");
        }
        let tags = ["/tags/cache_hits", "/tags/slot_reads"].map(|path| number(facts, path));
        assert_eq!(tags.iter().sum::<u64>(), 4, "{facts}");
    }

    fn check_second(facts: &Value) {
        for (path, count) in [("/requests", 12), ("/reads", 12), ("/errors", 0)] {
            assert_eq!(number(facts, path), count, "{path} of {facts}");
        }
        assert_eq!(number(facts, "/read_bytes"), 12 * 4096);
        let (passes, most) = (
            number(facts, "/batches/count"),
            number(facts, "/batches/max"),
        );
        assert!((1..=12).contains(&passes) && passes * most >= 12, "{facts}");
        assert!(
            (1..=passes).contains(&number(facts, "/notifications")),
            "{facts}"
        );
    }

    fn check_latency(facts: &Value) {
        let latency = ["p50", "p99", "p99.9", "max"].map(|name| {
            let value = facts["latency_us"][name].as_f64();
            value.unwrap_or_else(|| panic!("{name} of {facts}"))
        });
        assert!(latency[0] > 0.0 && latency.is_sorted(), "{facts}");
    }

    #[test]
    fn counts_of_known_requests_add_up() {
        let image = Image::create(&TAGGED);
        let options = ["--queues", "2", "--stats=1", "--cache", "writeback"];
        let daemon = Daemon::serve(&image, &options);
        // Over two connections: what the first did is not forgotten with it.
        for queue in 0..2 {
            let mut f = Frontend::open_with(daemon.socket(), Options::queues(2));
            match queue {
                0 => first_queue(&mut f.queues[0]),
                _ => second_queue(&mut f.queues[1]),
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while lines(&daemon.log()).len() < 2 {
            assert!(Instant::now() < deadline, "no line\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = image.dir().join("sock.log");
        daemon.stop();
        let log = std::fs::read_to_string(log).unwrap();
        let lines = lines(&log);
        let (total, intervals) = lines.split_last().unwrap();
        assert_eq!(total["stats"], "total", "{log}");
        assert!(intervals.iter().all(|line| line["stats"] == "interval"));
        check_first(&total["queues"][0]);
        check_second(&total["queues"][1]);
        for (queue, facts) in total["queues"].as_array().unwrap().iter().enumerate() {
            check_latency(facts);
            for path in [
                "/requests",
                "/errors",
                "/read_bytes",
                "/keyslots/hits",
                "/batches/count",
            ] {
                assert_eq!(sum(intervals, queue, path), number(facts, path), "{path}");
            }
        }
    }

    #[test]
    fn nothing_is_printed_unless_asked_for() {
        let image = Image::create(&TAGGED);
        let daemon = Daemon::serve(&image, &[]);
        Frontend::open(daemon.socket()).queue().assert_alive();
        let log = image.dir().join("sock.log");
        daemon.stop();
        assert_eq!(lines(&std::fs::read_to_string(log).unwrap()).len(), 0);
    }
}
