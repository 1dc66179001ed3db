//! What authentication costs on the medium. Figures, not tests, though the targets are asserted:
//! `cargo test --release --test cost -- --ignored --nocapture --test-threads 1`, as root for /dev/fuse.
//!
//! The images of the tests that time something lie in the build directory, so that it decides which disk is measured.

#[cfg(test)]
pub mod common;
#[cfg(test)]
pub mod forgetful;

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "figures are printed")]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    use crate::common::daemon::{Daemon, Image};
    use crate::common::frontend::{Frontend, Options};
    use crate::common::queue::Queue;
    use crate::common::request::{APPEND_TAIL_LINUX, Layout, Request, status};
    use crate::common::rng::Rng;
    use crate::forgetful::mount::Mount;

    const CIPHERS: [&str; 3] = ["aes-256-xts", "aes-256-xts+crc64", "aes-256-gcm"];
    const MIB: u64 = 1 << 20;
    /// Sectors of a zone of 64 MiB.
    const ZONE: u64 = 64 * MIB / 512;
    /// Bytes that the amplification is measured over: a zone.
    const WRITTEN: u64 = 64 * MIB;
    /// Most requests in flight.
    const DEPTH: u64 = 32;
    /// Flushes timed for each cipher.
    const FLUSHES: usize = 300;
    /// Bytes unflushed when the power fails.
    const UNFLUSHED: u64 = 1 << 30;

    fn create(image: &Image, cipher: &str, size: &str) {
        let options = ["--size", size, "--zone-size", "64M", "--cipher", cipher];
        let out = image.run_create(&options);
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "create: {err}");
    }

    /// An image that lies elsewhere.
    fn image_at(path: &Path) -> Image {
        let image = Image::empty();
        std::os::unix::fs::symlink(path, image.path()).unwrap();
        image
    }

    /// An image on the disk of the build directory.
    fn image_on_disk(cipher: &str, size: &str) -> (TempDir, Image) {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = dir.path().join("image");
        File::create(&file).unwrap();
        let image = image_at(&file);
        create(&image, cipher, size);
        (dir, image)
    }

    /// Appends `bytes` to a zone in requests of `len`, with a flush after every `flush` bytes and at the end.
    fn append(q: &mut Queue, zone: u64, bytes: u64, len: u64, flush: u64) {
        let data = Rng::new(len).bytes(usize::try_from(len).unwrap());
        let request = Request::append(zone, &data, APPEND_TAIL_LINUX);
        let at_once = DEPTH.min(flush / len);
        for done in (0..bytes).step_by(usize::try_from(len * at_once).unwrap()) {
            let requests = vec![request.clone(); usize::try_from(at_once).unwrap()];
            for done in q.batch(&requests, &Layout::indirect()).unwrap() {
                assert_eq!(done.status(), status::OK);
            }
            if (done + len * at_once).is_multiple_of(flush) {
                assert_eq!(q.flush(), status::OK);
            }
        }
        assert_eq!(q.flush(), status::OK);
    }

    /// `write_bytes` of /proc/PID/io: what the process had the kernel send to disks.
    fn written_by(daemon: &Daemon) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("write_bytes: "));
        line.unwrap().parse().unwrap()
    }

    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    fn ratio(bytes: u64) -> f64 {
        bytes as f64 / WRITTEN as f64
    }

    /// Bytes to the medium for each byte written: as they come out of the daemon, as a disk below a page cache gets
    /// them, and as the kernel counts them on a real file.
    fn amplification(cipher: &str, cache: &str, len: u64, flush: u64) -> [f64; 3] {
        let mount = Mount::new(&["image"], None);
        let image = image_at(&mount.path("image"));
        create(&image, cipher, "256M");
        let daemon = Daemon::serve(&image, &["--cache", cache]);
        let mut f = Frontend::open(daemon.socket());
        assert_eq!(f.queue().flush(), status::OK);
        let before = mount.traffic();
        append(f.queue(), ZONE, WRITTEN, len, flush);
        let after = mount.traffic();
        drop((f, daemon, image, mount));

        let (_dir, image) = image_on_disk(cipher, "256M");
        let daemon = Daemon::serve(&image, &["--cache", cache]);
        let mut f = Frontend::open(daemon.socket());
        assert_eq!(f.queue().flush(), status::OK);
        let start = written_by(&daemon);
        append(f.queue(), ZONE, WRITTEN, len, flush);
        let counted = written_by(&daemon) - start;
        [
            after.bytes - before.bytes,
            after.settled - before.settled,
            counted,
        ]
        .map(ratio)
    }

    #[test]
    #[ignore = "measures for some minutes; prints bytes to the medium over bytes written"]
    fn write_amplification() {
        println!("cipher, cache, append, flush every: calls, pages, /proc/PID/io");
        for cipher in CIPHERS {
            for cache in ["direct", "writeback"] {
                for (len, target) in [(128 << 10, 1.02), (4 << 10, 1.10)] {
                    for flush in [WRITTEN, MIB] {
                        let [calls, pages, counted] = amplification(cipher, cache, len, flush);
                        let (kib, mib) = (len >> 10, flush / MIB);
                        println!(
                            "{cipher} {cache} {kib} KiB {mib} MiB: {calls:.4} {pages:.4} {counted:.4}"
                        );
                        assert!(pages <= target, "{pages} is above {target}");
                        assert!(counted <= target, "{counted} is above {target}");
                    }
                }
            }
        }
    }

    /// Prints how the times are spread.
    fn spread(what: &str, times: &[Duration]) {
        let mut times = times.to_vec();
        times.sort();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
        println!(
            "{what}: median {:.0} us, 10 % below {:.0} us, 10 % above {:.0} us",
            at(50),
            at(10),
            at(90)
        );
    }

    /// A disk whose flushes are timed.
    #[derive(Debug)]
    struct Rig {
        cipher: &'static str,
        f: Frontend,
        daemon: Daemon,
        start: u64,
        times: Vec<Duration>,
        _image: (TempDir, Image),
    }

    #[test]
    #[ignore = "measures for a minute; prints what a flush costs"]
    fn flush_cost() {
        let mut rigs: Vec<_> = CIPHERS
            .iter()
            .map(|cipher| {
                let (dir, image) = image_on_disk(cipher, "256M");
                let daemon = Daemon::serve(&image, &[]);
                let f = Frontend::open(daemon.socket());
                Rig {
                    cipher,
                    start: written_by(&daemon),
                    f,
                    daemon,
                    times: Vec::new(),
                    _image: (dir, image),
                }
            })
            .collect();
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let plain = File::create(dir.path().join("plain")).unwrap();
        plain.set_len(64 << 20).unwrap();
        let mut alone = Vec::new();
        let data = vec![7; 16 << 10];
        // In turns, for what else the machine does is the same for all then, and no one is always first.
        for round in 0..FLUSHES as u64 {
            for rig in &mut rigs {
                let (done, _) = rig.f.queue().append(ZONE, &data, APPEND_TAIL_LINUX);
                assert_eq!(done, status::OK);
                let start = Instant::now();
                assert_eq!(rig.f.queue().flush(), status::OK);
                rig.times.push(start.elapsed());
            }
            rigs.rotate_left(1);
            plain.write_all_at(&data, round * 16384).unwrap();
            let start = Instant::now();
            plain.sync_data().unwrap();
            alone.push(start.elapsed());
        }
        println!("flush after an append of 16 KiB, {FLUSHES} of each");
        for Rig {
            cipher,
            times,
            daemon,
            start,
            ..
        } in &rigs
        {
            let per_flush = (written_by(daemon) - start) / FLUSHES as u64;
            println!("{cipher}: {per_flush} bytes to the medium each time");
            spread(cipher, times);
        }
        spread("fdatasync of a plain file", &alone);
    }

    /// Writes a GiB that nobody flushes into 16 zones at once.
    fn write_unflushed(daemon: &Daemon) {
        let mut f = Frontend::open_with(daemon.socket(), Options::queues(4));
        std::thread::scope(|scope| {
            for (zones, q) in (0..16_u64).step_by(4).zip(&mut f.queues) {
                scope.spawn(move || {
                    let data = Rng::new(zones).bytes(128 << 10);
                    for _ in 0..UNFLUSHED / 16 / (128 << 10) / 4 {
                        let requests: Vec<_> = (0..16)
                            .map(|i| (zones + i % 4) * ZONE)
                            .map(|zone| Request::append(zone, &data, APPEND_TAIL_LINUX))
                            .collect();
                        for done in q.batch(&requests, &Layout::indirect()).unwrap() {
                            assert_eq!(done.status(), status::OK);
                        }
                    }
                });
            }
        });
    }

    /// Opens an image and asks for its zones. Returns the time and how many bytes lie below the write pointers.
    fn time_opening(image: &Image, options: &[&str]) -> (Duration, u64, Daemon) {
        let start = Instant::now();
        let daemon = Daemon::serve(image, options);
        let mut f = Frontend::open(daemon.socket());
        let zones = f.queue().zones(32);
        let time = start.elapsed();
        let written = zones.iter().map(|z| z.wp.min(z.start + ZONE) - z.start);
        (time, written.sum::<u64>() * 512, daemon)
    }

    /// Seconds of processor time that a process used so far: fields 14 and 15 of /proc/PID/stat, in hundredths.
    fn cpu_seconds(daemon: &Daemon) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let (_, fields) = text.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks.map(|t| t.parse::<f64>().unwrap() / 100.0).sum()
    }

    /// Reads the file past the page cache: what the disk gives at this moment.
    fn time_reading(image: &Image, bytes: u64) -> Duration {
        let start = Instant::now();
        let mut command = Command::new("dd");
        command.arg(format!("if={}", image.path().display()));
        command.arg(format!("count={}", bytes / MIB));
        command.args(["of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
        assert!(command.status().unwrap().success(), "dd");
        start.elapsed()
    }

    /// Writes the file's pages back and drops them from the cache.
    fn make_cold(image: &Image) {
        let mut command = Command::new("dd");
        command.arg(format!("of={}", image.path().display()));
        command.args([
            "if=/dev/null",
            "conv=notrunc,fdatasync",
            "oflag=nocache",
            "status=none",
        ]);
        assert!(command.status().unwrap().success(), "dd");
    }

    #[test]
    #[ignore = "writes several GiB; prints how long a disk takes to open after a power cut"]
    fn opening_after_a_cut_with_a_gib_unflushed() {
        for cipher in CIPHERS {
            let (_dir, image) = image_on_disk(cipher, "2G");
            let daemon = Daemon::serve(&image, &["--queues", "4"]);
            let start = Instant::now();
            write_unflushed(&daemon);
            let written_in = start.elapsed();
            daemon.kill9();
            make_cold(&image);
            let read_in = time_reading(&image, UNFLUSHED);
            let cut = ["--queues", "4", "--after-power-cut"];
            let (opened_in, found, daemon) = time_opening(&image, &cut);
            println!(
                "{cipher}: a GiB written in {:.2} s, read by dd in {:.2} s, opened after a cut in {:.3} s ({:.2} s of \
                 processor time), {} MiB found",
                written_in.as_secs_f64(),
                read_in.as_secs_f64(),
                opened_in.as_secs_f64(),
                cpu_seconds(&daemon),
                found / MIB
            );
            let expected = if cipher == "aes-256-xts" {
                0
            } else {
                UNFLUSHED
            };
            assert_eq!(found, expected, "what was on the medium");
            daemon.stop();
            let (clean, _, _daemon) = time_opening(&image, &["--queues", "4"]);
            println!(
                "{cipher}: opened after an orderly end in {:.3} s",
                clean.as_secs_f64()
            );
        }
    }
}
