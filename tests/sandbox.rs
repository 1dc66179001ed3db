//! The sandbox: what is forbidden fails, what is needed works, on every thread of the daemon.
//!
//! What is forbidden is tried by this very program, started once more for each attempt: it goes into
//! the sandbox by the library's own functions, and how it ends is the answer.

#[cfg(test)]
pub mod common;

#[cfg(test)]
#[expect(
    unsafe_code,
    reason = "forbidden system calls are made as an attacker would make them"
)]
mod tests {
    use std::fs::{self, File};
    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, ExitStatus, Stdio};
    use std::time::{Duration, Instant};

    use zonevault::sandbox::{Mode, Sandbox, Thread};

    use crate::common::daemon::{Daemon, Image, Rig};
    use crate::common::disk::{SMALL, ZONE, ZONES, block};
    use crate::common::frontend::{Frontend, Options};
    use crate::common::queue::Queue;
    use crate::common::refused::refuse;
    use crate::common::request::{Layout, Request, kind, status};

    /// The goal for threads that serve a queue.
    const MOST_CALLS: usize = 25;
    const PATIENCE: Duration = Duration::from_secs(60);
    /// `thread:mode:attempt`, for the copy of this program that makes the attempt.
    const PROBE: &str = "ZONEVAULT_TEST_PROBE";
    const DIRECTORY: &str = "ZONEVAULT_TEST_DIRECTORY";
    /// How a probe ends that got an error, and one that got what it wanted.
    const REFUSED: i32 = 40;
    const DONE: i32 = 41;

    const QUEUE_THREADS: [Thread; 2] = [Thread::Worker, Thread::PlainWorker];

    fn raw(number: libc::c_long, arguments: [usize; 6]) -> bool {
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: the arguments name static strings, nothing, or memory that is not used otherwise.
        unsafe { libc::syscall(number, a, b, c, d, e, f) >= 0 }
    }

    fn map(protection: i32) -> usize {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        at.addr()
    }

    /// Whether it was done.
    fn attempt(what: &str) -> bool {
        let root = c"/".as_ptr().addr();
        let number = |n: i32| usize::try_from(n).unwrap();
        let directory = || PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
        match what {
            "nothing" => true,
            "open" => File::open("/proc/self/status").is_ok(),
            "create" => File::create(directory().join("new")).is_ok(),
            "remove" => fs::remove_file(directory().join("old")).is_ok(),
            "remove elsewhere" => fs::remove_file(directory().join("other/old")).is_ok(),
            "listen" => TcpListener::bind("127.0.0.1:0").is_ok(),
            // SAFETY: no memory is involved; signal 0 does nothing.
            "signal" => unsafe { libc::kill(libc::getppid(), 0) == 0 },
            "socket" => raw(libc::SYS_socket, [number(libc::AF_UNIX), 1, 0, 0, 0, 0]),
            "execve" => raw(libc::SYS_execve, [root, 0, 0, 0, 0, 0]),
            "execveat" => raw(libc::SYS_execveat, [0, root, 0, 0, 0, 0]),
            "ptrace" => raw(libc::SYS_ptrace, [0; 6]),
            "process_vm_readv" => raw(libc::SYS_process_vm_readv, [1, 0, 0, 0, 0, 0]),
            "memfd_create" => raw(libc::SYS_memfd_create, [root, 0, 0, 0, 0, 0]),
            "io_uring_setup" => raw(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
            "io_uring_register" => raw(libc::SYS_io_uring_register, [0, 0, 0, 0, 0, 0]),
            "openat2" => raw(libc::SYS_openat2, [0, root, 0, 0, 0, 0]),
            "unlinkat" => raw(libc::SYS_unlinkat, [0, root, 0, 0, 0, 0]),
            "bpf" => raw(libc::SYS_bpf, [0; 6]),
            "mount" => raw(libc::SYS_mount, [root, root, root, 0, 0, 0]),
            "setuid" => raw(libc::SYS_setuid, [0; 6]),
            "kill" => raw(libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
            "clone" => raw(libc::SYS_clone, [0; 6]),
            "prctl" => raw(libc::SYS_prctl, [1, 0, 0, 0, 0, 0]),
            "mmap code" => map(libc::PROT_READ | libc::PROT_EXEC) != usize::MAX,
            "mprotect code" => {
                let at = map(libc::PROT_READ);
                let protection = number(libc::PROT_READ | libc::PROT_EXEC);
                raw(libc::SYS_mprotect, [at, 4096, protection, 0, 0, 0])
            }
            other => panic!("{other}?"),
        }
    }

    fn thread_named(name: &str) -> Option<Thread> {
        Thread::ALL
            .into_iter()
            .find(|thread| format!("{thread:?}") == name)
    }

    /// The copy of this program: into the sandbox, an attempt, and out. Does nothing in an ordinary run.
    #[test]
    fn probe() {
        let Ok(probe) = std::env::var(PROBE) else {
            return;
        };
        let [thread, mode, what] = probe.split(':').collect::<Vec<_>>().try_into().unwrap();
        let mode = match mode {
            "On" => Mode::On,
            "Log" => Mode::Log,
            _ => Mode::Off,
        };
        let directory = std::env::var_os(DIRECTORY).map(PathBuf::from);
        let sandbox = Sandbox::confine(mode, None, directory.as_deref()).unwrap();
        let thread = thread_named(thread);
        let done = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                if let Some(thread) = thread {
                    sandbox.enter(thread).unwrap();
                }
                attempt(what)
            });
            inside.join().unwrap()
        });
        std::process::exit(if done { DONE } else { REFUSED });
    }

    /// How `attempt` ends on `thread`, or where only the first step was made.
    fn ends(thread: Option<Thread>, mode: Mode, attempt: &str, directory: &Path) -> ExitStatus {
        let thread = thread.map_or_else(|| "none".to_owned(), |thread| format!("{thread:?}"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::probe", "--nocapture", "--test-threads=1"])
            .env(PROBE, format!("{thread}:{mode:?}:{attempt}"))
            .env(DIRECTORY, directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() >= deadline {
                child.kill().unwrap();
                panic!("{thread}: {attempt} does not end");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn assert_killed(status: ExitStatus, what: &str) {
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{what}: {status}");
    }

    fn scene() -> tempfile::TempDir {
        let scene = tempfile::tempdir().unwrap();
        fs::write(scene.path().join("old"), "x").unwrap();
        scene
    }

    #[test]
    fn a_queue_thread_that_calls_what_it_has_no_use_for_ends_the_daemon() {
        let scene = scene();
        let forbidden = [
            "socket",
            "execve",
            "execveat",
            "ptrace",
            "process_vm_readv",
            "memfd_create",
            "io_uring_setup",
            "io_uring_register",
            "openat2",
            "unlinkat",
            "bpf",
            "mount",
            "setuid",
            "kill",
            "clone",
            "prctl",
            "mmap code",
            "mprotect code",
        ];
        for thread in QUEUE_THREADS {
            for what in forbidden {
                let status = ends(Some(thread), Mode::On, what, scene.path());
                assert_killed(status, &format!("{thread:?}: {what}"));
            }
        }
    }

    #[test]
    fn no_thread_has_what_a_takeover_wants() {
        let scene = scene();
        for thread in Thread::ALL {
            for what in ["socket", "execve", "ptrace", "io_uring_setup", "mmap code"] {
                let status = ends(Some(thread), Mode::On, what, scene.path());
                assert_killed(status, &format!("{thread:?}: {what}"));
            }
            // What malloc may want is denied, and no more than that.
            let status = ends(Some(thread), Mode::On, "open", scene.path());
            assert_eq!(status.code(), Some(REFUSED), "{thread:?}: {status}");
            let status = ends(Some(thread), Mode::On, "nothing", scene.path());
            assert_eq!(status.code(), Some(DONE), "{thread:?}: {status}");
        }
    }

    /// The attempts mean something: without the filter, or with one that only writes them down, they
    /// are answered as ever.
    #[test]
    fn the_same_is_not_refused_elsewhere() {
        let scene = scene();
        for (mode, thread) in [
            (Mode::Off, Some(Thread::Worker)),
            (Mode::Log, Some(Thread::Worker)),
        ] {
            for what in ["socket", "memfd_create", "open", "mmap code", "create"] {
                let status = ends(thread, mode, what, scene.path());
                assert_eq!(status.code(), Some(DONE), "{mode:?}: {what}: {status}");
            }
            let status = ends(thread, mode, "execve", scene.path());
            assert_eq!(status.code(), Some(REFUSED), "{mode:?}: {status}");
        }
    }

    #[test]
    fn no_path_is_left_but_the_removal_of_the_socket() {
        let scene = scene();
        let sandbox = Sandbox::confine(Mode::Off, None, None).unwrap();
        assert!(sandbox.is_off());
        let code = |thread, what| ends(thread, Mode::On, what, scene.path()).code();
        if code(None, "create") == Some(DONE) {
            return println!("skipped: this kernel has no Landlock");
        }
        for what in ["open", "create", "remove elsewhere"] {
            assert_eq!(code(None, what), Some(REFUSED), "{what}");
        }
        for what in ["signal", "listen"] {
            println!("{what}: {:?} (newer kernels refuse it)", code(None, what));
        }
        // Not even a file that others may remove.
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("old"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), scene.path().join("other")).unwrap();
        assert_eq!(code(None, "remove elsewhere"), Some(REFUSED));
        assert!(outside.path().join("old").exists());
        assert_killed(
            ends(Some(Thread::Worker), Mode::On, "remove", scene.path()),
            "removal by a queue's thread",
        );
        assert_eq!(code(Some(Thread::Main), "remove"), Some(DONE));
        assert!(!scene.path().join("old").exists());
    }

    #[test]
    fn lists_do_not_grow_unnoticed() {
        for thread in QUEUE_THREADS {
            let names: Vec<&str> = thread.calls().map(|call| call.name).collect();
            assert!(names.len() <= MOST_CALLS, "{}: {names:?}", names.len());
        }
        for thread in Thread::ALL {
            for call in thread.calls() {
                assert!(!call.why.is_empty(), "{}", call.name);
                let never = [
                    "open", "exec", "socket", "ptrace", "clone", "fork", "bind", "connect",
                    "setup", "link", "mount", "kill", "prctl", "seccomp", "process", "memfd",
                ];
                let taken = never.iter().any(|part| call.name.contains(part));
                let front_end = thread == Thread::Main
                    && ["unlink", "tgkill", "memfd_create"].contains(&call.name);
                assert!(!taken || front_end, "{thread:?}: {}", call.name);
            }
        }
    }

    /// The lines of /proc/PID/task/TID/status of every thread of ours, with its name.
    fn threads(daemon: &Daemon) -> Vec<(String, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
        let all = tasks.filter_map(|task| status(task.unwrap()));
        let named = all.map(|text| (field(&text, "Name"), text));
        // Those of the kernel, which do what rings are told, are its own.
        let mut ours: Vec<_> = named
            .filter(|(name, _)| !name.starts_with("iou-"))
            .collect();
        ours.sort();
        ours
    }

    fn field(status: &str, name: &str) -> String {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap_or_else(|| panic!("no {name} in {status}"));
        value.trim_start_matches(':').trim().to_owned()
    }

    /// Waits until the daemon listens to nobody any more but in the sandbox.
    fn confined(daemon: &Daemon, filter: &str) -> Vec<(String, String)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let threads = threads(daemon);
            let within = |(_, status): &(String, String)| field(status, "Seccomp") == filter;
            if threads.len() > 3 && threads.iter().all(within) {
                return threads;
            }
            assert!(Instant::now() < deadline, "{threads:?}\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn every_thread_of_a_daemon_is_confined() {
        let image = Image::create(&SMALL);
        let daemon = Daemon::serve(&image, &["--queues", "2", "--stats"]);
        let threads = confined(&daemon, "2");
        let names: Vec<&str> = threads.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["queue-0", "queue-1", "signals", "stats", "zonevault"]
        );
        for (name, status) in &threads {
            assert_eq!(field(status, "NoNewPrivs"), "1", "{name}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(field(status, set), "0000000000000000", "{name}: {set}");
            }
            if is_root() {
                assert_eq!(field(status, "CapBnd"), "0000000000000000", "{name}");
            }
        }
        let said = daemon.log();
        assert!(
            said.contains("sandbox on: seccomp lists of 25 system calls (queue)"),
            "{said}"
        );
        assert!(said.contains("Landlock"), "{said}");
        // A connection more brings no thread more.
        drop(Frontend::open_with(daemon.socket(), Options::queues(2)));
        assert_eq!(confined(&daemon, "2").len(), threads.len());
        let socket = daemon.socket().to_owned();
        daemon.stop();
        assert!(!socket.exists(), "the socket is left behind");
    }

    #[test]
    fn without_or_with_half_a_sandbox_the_daemon_says_so() {
        let image = Image::create(&SMALL);
        let daemon = Daemon::serve(&image, &["--sandbox", "off", "--stats"]);
        confined(&daemon, "0");
        assert!(daemon.log().contains("sandbox off: "), "{}", daemon.log());
        daemon.stop();
        let daemon = Daemon::serve(&image, &["--sandbox", "log", "--stats"]);
        confined(&daemon, "2");
        assert!(
            daemon
                .log()
                .contains("sandbox log only, nothing is refused"),
            "{}",
            daemon.log()
        );
        let mut f = Frontend::open(daemon.socket());
        every_kind(f.queue());
        daemon.stop();
    }

    fn is_root() -> bool {
        // SAFETY: no memory is involved.
        unsafe { libc::geteuid() == 0 }
    }

    #[test]
    fn root_can_become_somebody_else() {
        const USER: &str = "4000123";
        let image = Image::create(&SMALL);
        let options = ["--stats", "--user", "4000123:4000124"];
        if !is_root() {
            let mut daemon = Daemon::spawn(&image, "sock", &options);
            assert_eq!(daemon.wait_exit().code(), Some(2), "{}", daemon.log());
            return;
        }
        for way in ["on", "off"] {
            let daemon = Daemon::serve(&image, &[&options[..], &["--sandbox", way]].concat());
            let filter = if way == "on" { "2" } else { "0" };
            for (name, status) in confined(&daemon, filter) {
                assert_eq!(field(&status, "Uid"), [USER; 4].join("\t"), "{name}");
                assert_eq!(field(&status, "Gid"), ["4000124"; 4].join("\t"), "{name}");
                assert_eq!(field(&status, "Groups"), "", "{name}");
                assert_eq!(field(&status, "CapEff"), "0000000000000000", "{name}");
            }
            let owner = fs::metadata(daemon.socket()).unwrap();
            assert_eq!((owner.uid(), owner.gid()), (4_000_123, 4_000_124));
            let mut f = Frontend::open(daemon.socket());
            every_kind(f.queue());
            daemon.stop();
        }
    }

    /// A request of each kind that a zoned disk has, good and bad.
    fn every_kind(q: &mut Queue) {
        let zone = 4 * ZONE;
        assert_eq!(q.simple(kind::ZONE_RESET, zone), status::OK);
        assert_eq!(q.append(zone, &block(1), 9), (status::OK, zone));
        assert_eq!(q.write(zone + 8, &block(2)), status::OK);
        assert_eq!(q.flush(), status::OK);
        assert!(q.read_ok(zone, 8192).starts_with(&block(1)));
        assert_eq!(q.get_id().0, status::OK);
        assert_eq!(q.zones(ZONES).len(), ZONES);
        for management in [
            kind::ZONE_CLOSE,
            kind::ZONE_OPEN,
            kind::ZONE_FINISH,
            kind::ZONE_RESET,
        ] {
            assert_eq!(q.simple(management, zone), status::OK, "{management}");
        }
        // Conventional or not.
        assert_eq!(q.write(0, &block(3)), status::OK);
        assert_eq!(q.read_ok(0, 4096), block(3));
        assert_eq!(q.write(zone + 80, &block(2)), status::UNALIGNED_WP);
        assert_ne!(q.simple(0x7777, 0), status::OK);
        assert_eq!(q.simple(kind::ZONE_RESET_ALL, 0), status::OK);
    }

    /// Many requests at once, so that buffers grow and reads wait.
    fn many(q: &mut Queue) {
        let appends: Vec<Request> = (0..32)
            .map(|n| Request::append((4 + n % 3) * ZONE, &[7; 16 << 10], 9))
            .collect();
        let reads: Vec<Request> = (0..64)
            .map(|n| Request::read((4 + n % 3) * ZONE + n, 128 << 10))
            .collect();
        for batch in [&appends, &reads] {
            let done = q.batch(batch, &Layout::default()).unwrap();
            assert_eq!(done.len(), batch.len());
        }
        assert_eq!(q.simple(kind::ZONE_RESET_ALL, 0), status::OK);
    }

    #[test]
    fn everything_works_in_it() {
        let ciphers = ["aes-256-gcm", "aes-256-xts", "aes-256-xts+crc64"];
        let ways = ["direct", "writeback"];
        for (cipher, way) in ciphers.iter().flat_map(|c| ways.map(|w| (*c, w))) {
            let create = [&SMALL[..6], &SMALL[8..], &["--cipher", cipher]].concat();
            let serve = [
                "--queues",
                "2",
                "--cache",
                way,
                "--stats=1",
                "--sandbox",
                "on",
            ];
            let mut rig = Rig::new(&create, &serve);
            for _ in 0..2 {
                let mut f = Frontend::open_with(&rig.socket(), Options::queues(2));
                for at in 0..2 {
                    every_kind(&mut f.queues[at]);
                    many(&mut f.queues[at]);
                }
                // A queue that stops and starts again has the ring that its thread has kept.
                f.stop_queue(1).unwrap();
                f.start_queue(1).unwrap();
                every_kind(&mut f.queues[1]);
            }
            let mut f = Frontend::open_with(&rig.socket(), Options::queues(2));
            every_kind(f.queue());
            rig.restart();
            assert!(!rig.log().contains("ERROR"), "{}", rig.log());
        }
    }

    /// As under `kernel.io_uring_disabled`, or in a container.
    #[test]
    fn a_disk_is_served_where_io_uring_is_forbidden() {
        let forbid = |command: &mut Command| {
            refuse(command, libc::SYS_io_uring_setup, libc::EPERM);
        };
        for way in ["direct", "writeback"] {
            let options = ["--queues", "2", "--cache", way];
            let image = Image::create(&[&SMALL[..6], &SMALL[8..]].concat());
            let daemon = Daemon::serve_prepared(&image, &options, forbid);
            let mut f = Frontend::open_with(daemon.socket(), Options::queues(2));
            for q in &mut f.queues {
                every_kind(q);
                many(q);
            }
            f.stop_queue(1).unwrap();
            f.start_queue(1).unwrap();
            every_kind(&mut f.queues[1]);
            drop(f);
            let said = daemon.log();
            assert!(said.contains("no io_uring on this host"), "{said}");
            assert!(said.contains("sandbox on"), "{said}");
            daemon.stop();
            let plain = Image::create(&["--size", "16M", "--plain"]);
            let daemon = Daemon::serve_prepared(&plain, &options, forbid);
            discards(Frontend::open(daemon.socket()).queue());
            daemon.stop();
        }
    }

    #[test]
    fn a_plain_disk_discards_in_it() {
        let rig = Rig::new(&["--size", "16M", "--plain"], &["--sandbox", "on"]);
        discards(Frontend::open(&rig.socket()).queue());
    }

    fn discards(q: &mut Queue) {
        assert_eq!(q.write(0, &block(1)), status::OK);
        assert_eq!(q.ranges(kind::DISCARD, &[(0, 64, 0)]), status::OK);
        assert_eq!(q.ranges(kind::WRITE_ZEROES, &[(64, 64, 0)]), status::OK);
        assert_eq!(q.flush(), status::OK);
        assert_eq!(q.read_ok(64, 4096), block(0));
    }

    /// Stopped and continued, every wait goes on.
    #[test]
    fn a_daemon_that_was_stopped_goes_on() {
        let mut rig = Rig::new(&SMALL, &["--stats=1"]);
        let mut f = Frontend::open(&rig.socket());
        for _ in 0..20 {
            let daemon = rig.daemon.as_ref().unwrap();
            daemon.signal(libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(5));
            daemon.signal(libc::SIGCONT);
            every_kind(f.queue());
        }
        drop(f);
        rig.restart();
    }
}
