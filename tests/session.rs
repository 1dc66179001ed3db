//! Front-ends that are slow, dead, strange or too many, and the socket that they come by.

#[cfg(test)]
pub mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

    use crate::common::daemon::{BINARY, Daemon, Image, Rig};
    use crate::common::disk::state;
    use crate::common::frontend::{Frontend, Options};
    use crate::common::memory::Span;
    use crate::common::queue::Queue;
    use crate::common::request::{Layout, Request, kind, status};
    use crate::common::wire::{PATIENCE, Wire, WireError, longs, words};

    const PLAIN: [&str; 3] = ["--size", "16M", "--plain"];
    /// Where an environment tells a helper process to connect.
    const STRANGER: &str = "ZONEVAULT_TEST_STRANGER";
    /// A user that nobody is.
    const NOBODY: u32 = 54_321;

    /// What the daemon holds of the system: descriptors, threads, mappings.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Holdings {
        descriptors: usize,
        threads: usize,
        mappings: usize,
    }

    impl Holdings {
        fn of(rig: &Rig) -> Self {
            let pid = rig.daemon.as_ref().unwrap().pid();
            let entries = |what| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
            // Those of the kernel (`iou-wrk`), which do what a ring is told, come and go.
            let ours = |tid: &fs::DirEntry| {
                let name = fs::read_to_string(tid.path().join("comm")).unwrap_or_default();
                !name.is_empty() && !name.starts_with("iou-")
            };
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            Self {
                descriptors: entries("fd"),
                threads: tasks.filter(|task| task.as_ref().is_ok_and(ours)).count(),
                // Heaps of the allocator come and go; what is shared with front-ends has a file.
                mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
            }
        }
    }

    #[test]
    fn a_thousand_connections_leave_nothing_behind() {
        let rig = Rig::new(&PLAIN, &["--queues", "2"]);
        let data = [7; 4096];
        drop(Frontend::open_with(&rig.socket(), Options::queues(2)));
        let idle = Wire::connect(&rig.socket()).unwrap().wait_idle();
        let before = Holdings::of(&rig);
        drop(idle);
        for round in 0..1000_u32 {
            match round % 5 {
                0 => drop(Wire::connect(&rig.socket()).unwrap()),
                1 => {
                    let mut wire = Wire::connect(&rig.socket()).unwrap();
                    wire.send_bytes(&words(&[1, 1])[..7], &[]).unwrap();
                }
                2 => drop(Frontend::negotiate(&rig.socket(), Options::default()).unwrap()),
                _ => {
                    let mut f = Frontend::open_with(&rig.socket(), Options::queues(2));
                    for queue in &mut f.queues {
                        for _ in 0..round % 7 {
                            let write = Request::write(0, &data);
                            queue.submit(&write, &Layout::default()).unwrap();
                        }
                        queue.kick();
                    }
                }
            }
        }
        let idle = Wire::connect(&rig.socket()).unwrap().wait_idle();
        assert_eq!(Holdings::of(&rig), before);
        drop(idle);
        Frontend::open(&rig.socket()).queue().assert_alive();
    }

    trait WaitIdle {
        fn wait_idle(self) -> Self;
    }

    impl WaitIdle for Wire {
        /// Comes back when the connection before this one is done with.
        fn wait_idle(mut self) -> Self {
            self.ask_u64(FrontendReq::GET_FEATURES).unwrap();
            self
        }
    }

    #[test]
    fn half_a_message_is_waited_for_in_vain_for_a_while_only() {
        let rig = Rig::new(&PLAIN, &[]);
        let header = words(&[FrontendReq::SET_FEATURES as u32, 1, 8]);
        for part in [
            &header[..1],
            &header[..11],
            &[&header[..], &[0; 7]].concat(),
        ] {
            let mut slow = Wire::connect(&rig.socket()).unwrap();
            // Silence between messages may last.
            std::thread::sleep(Duration::from_millis(50));
            slow.send_bytes(part, &[]).unwrap();
            slow.wait_closed().unwrap();
        }
        // In two pieces it is a message all the same.
        let mut f = Frontend::negotiate(&rig.socket(), Options::default()).unwrap();
        let features = longs(&[f.features]);
        f.wire.send_bytes(&header[..5], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        f.wire.send_bytes(&header[5..], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        f.wire.send_bytes(&features[..3], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        f.wire.send_bytes(&features[3..], &[]).unwrap();
        f.set_memory().unwrap();
        f.start_queues().unwrap();
        f.queue().assert_alive();
        let log = rig.log();
        assert_eq!(log.matches("left it unfinished").count(), 3, "{log}");
    }

    #[test]
    fn a_front_end_that_reads_no_answers_is_given_up() {
        let rig = Rig::new(&PLAIN, &[]);
        let deaf = Wire::connect(&rig.socket());
        let mut deaf = deaf.unwrap();
        let ask = words(&[FrontendReq::GET_FEATURES as u32, 1, 0]);
        let deadline = Instant::now() + 2 * PATIENCE;
        // Until nobody reads what we send either, and then until the connection ends.
        while deaf.send_bytes(&ask, &[]).is_ok() {
            assert!(Instant::now() < deadline, "it goes on for ever");
        }
        drop(deaf);
        Frontend::open(&rig.socket()).queue().assert_alive();
        assert!(
            rig.log().contains("did not read its answers"),
            "{}",
            rig.log()
        );
    }

    #[test]
    fn a_second_front_end_is_told_after_a_moment() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        let mut second = Wire::connect(&rig.socket()).unwrap();
        let mut third = Wire::connect(&rig.socket()).unwrap();
        second.wait_closed().unwrap();
        third.wait_closed().unwrap();
        f.queue().assert_alive();
        // One that comes while the first one leaves gets its turn.
        let next = Wire::connect(&rig.socket()).unwrap();
        drop(f);
        next.wait_idle();
    }

    #[test]
    fn memory_is_let_go_of_before_its_removal_is_acknowledged() {
        let rig = Rig::new(&PLAIN, &[]);
        let options = Options {
            memory_slots: true,
            ..Options::default()
        };
        let mut f = Frontend::open_with(&rig.socket(), options);
        assert_eq!(f.queue().write(0, &[0x11; 65536]), status::OK);
        let far = f.ram.regions()[1];
        for round in 0..20 {
            // Everything goes to the second region but the ring.
            let space = fill_first_region(f.queue());
            for _ in 0..16 {
                let read = Request::read(0, 65536);
                f.queue().submit(&read, &Layout::default()).unwrap();
            }
            f.queue().kick();
            f.remove_region(1).unwrap();
            let marker = vec![0xee; 1 << 20];
            for at in (0..far.span.len).step_by(1 << 20) {
                f.ram.write(far.span.start + at, &marker);
            }
            std::thread::sleep(Duration::from_millis(5));
            for at in (0..far.span.len).step_by(1 << 20) {
                let now = f.ram.read(Span::new(far.span.start + at, 1 << 20));
                assert!(now == marker, "round {round}: written after the removal");
            }
            add_region(&mut f, 1);
            while f.queue().in_flight() > 0 {
                f.queue().reap(PATIENCE).unwrap();
            }
            f.ram.free(space);
            f.queue().assert_alive();
        }
    }

    fn add_region(f: &mut Frontend, at: usize) {
        let region = f.ram.regions()[at];
        let place = [
            0,
            region.span.start,
            region.span.len,
            region.user_addr,
            region.file_offset,
        ];
        f.wire
            .tell(FrontendReq::ADD_MEM_REG, &longs(&place), &[region.fd])
            .unwrap();
    }

    /// Takes what is left of the first region, so that buffers come from the second.
    fn fill_first_region(queue: &Queue) -> Span {
        let end = queue.ram.regions()[0].span.start + queue.ram.regions()[0].span.len;
        let mut len = queue.ram.regions()[0].span.len;
        loop {
            len -= 4096;
            let span = queue.ram.alloc(len, 4096, 0);
            if span.start + span.len <= end {
                return span;
            }
            queue.ram.free(span);
        }
    }

    #[test]
    fn a_queue_whose_memory_is_cut_off_stops_and_says_so() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        f.queue().assert_alive();
        for region in f.ram.regions() {
            // Through /proc, as the descriptor is another's to own.
            let path = format!("/proc/self/fd/{}", region.fd);
            fs::File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(0)
                .unwrap();
        }
        f.queue().force_kick();
        let err = f.queue().events()[2].try_clone().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while err.read().is_err() {
            assert!(Instant::now() < deadline, "no word of it");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(f);
        Frontend::open(&rig.socket()).queue().assert_alive();
        assert!(rig.log().contains("its file shrank"), "{}", rig.log());
    }

    /// Of a zone that the guest opened and one that it wrote to, the states after the daemon was ended in order.
    fn states_after_an_orderly_restart(options: Options) -> [u8; 2] {
        let mut rig = Rig::new(&["--size", "16M", "--zone-size", "1M"], &[]);
        let mut f = Frontend::open_with(&rig.socket(), options);
        assert_eq!(f.queue().simple(kind::ZONE_OPEN, 0), status::OK);
        assert_eq!(f.queue().write(2048, &[7; 4096]), status::OK);
        rig.restart();
        f.reconnect().unwrap();
        [0, 2048].map(|sector| f.queue().zone(sector).state)
    }

    #[test]
    fn zones_stay_open_for_a_guest_that_goes_on_with_the_next_daemon() {
        let mut options = Options::default();
        options.protocol |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let states = states_after_an_orderly_restart(options);
        assert_eq!(states, [state::EOPEN, state::IOPEN]);
    }

    #[test]
    fn and_are_closed_where_nobody_knows_that_it_does() {
        let states = states_after_an_orderly_restart(Options::default());
        assert_eq!(states, [state::EMPTY, state::CLOSED]);
    }

    #[test]
    fn the_socket_is_its_owners_alone_whatever_the_umask() {
        let image = Image::create(&PLAIN);
        let socket = image.dir().join("sock");
        let mut daemon =
            serve_by_shell(&image, "umask 0; exec \"$@\" --socket sock", Stdio::null());
        await_socket(&socket);
        assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
        Frontend::open(&socket).queue().assert_alive();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        // Killed, it leaves the socket, and the next one takes its place.
        assert!(socket.exists());
        let mut daemon =
            serve_by_shell(&image, "umask 0; exec \"$@\" --socket sock", Stdio::null());
        Frontend::open(&socket).queue().assert_alive();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    #[test]
    fn nothing_is_removed_that_is_not_a_stale_socket_of_ours() {
        let image = Image::create(&PLAIN);
        let socket = image.dir().join("other");
        let refused = |why: &str| {
            let serve = Command::new(BINARY)
                .args([
                    "serve",
                    "disk.img",
                    "--key-file",
                    "key",
                    "--socket",
                    "other",
                ])
                .current_dir(image.dir())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&serve.stderr).into_owned();
            assert!(!serve.status.success() && said.contains(why), "{said}");
            assert!(fs::symlink_metadata(&socket).is_ok(), "{why}: removed");
        };
        fs::write(&socket, "precious").unwrap();
        refused("not a socket");
        fs::remove_file(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        refused("another process listens");
        drop(listener);
        if chown(&socket, Some(NOBODY), None).is_ok() {
            refused("a socket of user");
        }
    }

    #[test]
    fn an_inherited_socket_does_as_well() {
        for script in [
            "exec \"$@\" --fd 7 7<&0 </dev/null",
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 </dev/null",
        ] {
            let image = Image::create(&PLAIN);
            let socket = image.dir().join("handed");
            let listener = UnixListener::bind(&socket).unwrap();
            let mut daemon = serve_by_shell(&image, script, OwnedFd::from(listener));
            Frontend::open(&socket).queue().assert_alive();
            let pid = daemon.id().to_string();
            Command::new("kill").args(["-TERM", &pid]).status().unwrap();
            assert!(daemon.wait().unwrap().success(), "{script}");
            assert!(socket.exists(), "whoever made it removes it");
        }
        let image = Image::create(&PLAIN);
        for (script, why) in [
            ("exec \"$@\" --fd 7 7</dev/null", "descriptor 7"),
            ("exec \"$@\" --fd 7", "descriptor 7"),
            ("exec \"$@\"", "--socket"),
            ("LISTEN_PID=1 LISTEN_FDS=1 exec \"$@\"", "--socket"),
        ] {
            let mut command = shell(&image, script);
            let done = command.output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(
                !done.status.success() && said.contains(why),
                "{script}: {said}"
            );
        }
    }

    #[test]
    fn other_users_are_served_if_they_are_named() {
        let image = Image::create(&PLAIN);
        // Other users may look for the socket, and may use it as far as the file goes.
        fs::set_permissions(image.dir(), fs::Permissions::from_mode(0o711)).unwrap();
        for (options, served) in [(&[][..], false), (&["--allow-uid", "54321"][..], true)] {
            let daemon = Daemon::serve(&image, options);
            let socket = daemon.socket().to_owned();
            fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
            let stranger = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tests::stranger", "--ignored"])
                .env(STRANGER, &socket)
                .uid(NOBODY)
                .stdin(Stdio::null())
                .output();
            match stranger {
                Ok(done) => {
                    let said = String::from_utf8_lossy(&done.stdout);
                    assert!(said.contains("1 passed") || !served, "{said}");
                    assert_eq!(done.status.success(), served, "{said}");
                }
                // Not root, or the program lies where nobody else may read.
                Err(e) => println!("no other user to be had: {e}"),
            }
            assert_eq!(
                daemon.log().matches("of user 54321").count(),
                1,
                "the first time"
            );
            Frontend::open(&socket).queue().assert_alive();
            daemon.stop();
        }
    }

    #[test]
    #[ignore = "run by another test as another user"]
    fn stranger() {
        let socket = std::env::var(STRANGER).unwrap();
        let mut wire = Wire::connect(Path::new(&socket)).unwrap();
        wire.ask_u64(FrontendReq::GET_FEATURES).unwrap();
    }

    #[test]
    fn a_refused_message_changes_nothing_and_ends_nothing() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        let file = fs::File::open("/dev/null").unwrap();
        let fd = [file.as_raw_fd()];
        let [desc, avail, used] = f.queue().ring.addresses().map(|gpa| f.ram.user_addr(gpa));
        let addresses = |values: &[u64]| [words(&[0, 0]), longs(values), longs(&[0])].concat();
        let cases: Vec<(FrontendReq, Vec<u8>, &[i32])> = vec![
            (FrontendReq::SET_OWNER, vec![], &[]),
            (FrontendReq::SET_VRING_NUM, words(&[0, 64]), &[]),
            (FrontendReq::SET_VRING_NUM, words(&[7, 64]), &[]),
            (FrontendReq::SET_VRING_BASE, words(&[0, 0]), &[]),
            (
                FrontendReq::SET_VRING_ADDR,
                addresses(&[16, used, avail]),
                &[],
            ),
            (
                FrontendReq::SET_VRING_ADDR,
                addresses(&[desc, u64::MAX - 3, avail]),
                &[],
            ),
            (FrontendReq::SET_VRING_KICK, longs(&[0]), &fd),
            (FrontendReq::SET_VRING_CALL, longs(&[0]), &fd),
            (FrontendReq::SET_VRING_ERR, longs(&[0]), &fd),
            (FrontendReq::SET_VRING_KICK, longs(&[0x100]), &[]),
            (
                FrontendReq::ADD_MEM_REG,
                longs(&[0, 0, 4096, 0x1000, 0]),
                &fd,
            ),
            (
                FrontendReq::REM_MEM_REG,
                longs(&[0, 0, 4096, 0x1000, 0]),
                &[],
            ),
            (FrontendReq::SET_VRING_ENABLE, words(&[9, 1]), &[]),
            (FrontendReq::SET_FEATURES, longs(&[0]), &[]),
        ];
        for (request, body, fds) in cases {
            let answer = f.wire.tell(request, &body, fds);
            assert!(
                matches!(answer, Err(WireError::Refused(_))),
                "{request:?}: {answer:?}"
            );
            f.queue().assert_alive();
        }
        // What QEMU may repeat while the queue runs.
        f.wire
            .tell(
                FrontendReq::SET_VRING_ADDR,
                &addresses(&[desc, used, avail]),
                &[],
            )
            .unwrap();
        f.queue().assert_alive();
    }

    fn shell(image: &Image, script: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                script,
                "sh",
                BINARY,
                "serve",
                "disk.img",
                "--key-file",
                "key",
            ])
            .current_dir(image.dir());
        command
    }

    fn serve_by_shell(image: &Image, script: &str, stdin: impl Into<Stdio>) -> Child {
        let log = fs::File::create(image.dir().join("shell.log")).unwrap();
        let mut command = shell(image, script);
        command.stdin(stdin).stdout(Stdio::null()).stderr(log);
        command.spawn().unwrap()
    }

    fn await_socket(path: &Path) {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(path).is_err() {
            assert!(Instant::now() < deadline, "no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
