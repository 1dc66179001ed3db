//! The store's contract, the same for every medium: files on tmpfs and on a disk, with and without O_DIRECT, with a
//! ring and without, a loop device where there is one, and the twin in memory.

#[cfg(test)]
#[path = "common/rng.rs"]
pub mod rng;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use crate::rng::Rng;
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    use zonevault::store::mem::MemMedium;
    use zonevault::store::{
        Access, Cache, Completion, FileMedium, IoBuf, Medium, Op, OpenError, Store,
    };

    /// Longer than anything here takes, however busy the machine.
    const PATIENCE: Duration = Duration::from_secs(60);
    const LEN: u64 = 4 << 20;
    const BLOCK: u64 = 4096;
    const DEPTH: u32 = 16;

    /// How a test waits for completions.
    #[derive(Clone, Copy, PartialEq)]
    enum Waiting {
        /// `Store::wait`.
        Call,
        /// Sleeping in epoll on `Store::event`, as a worker does.
        Epoll,
        /// Reaping again and again.
        Polling,
    }

    /// One store, with what a test needs to wait for it.
    struct Channel<S: Store> {
        store: S,
        epoll: Option<Epoll>,
        waiting: Waiting,
    }

    impl<S: Store> Channel<S> {
        fn new(store: S, waiting: Waiting) -> Self {
            let epoll = store.event().map(|event| {
                let epoll = Epoll::new().unwrap();
                let wanted = EpollEvent::new(EventSet::IN, 0);
                epoll
                    .ctl(ControlOperation::Add, event.as_raw_fd(), wanted)
                    .unwrap();
                epoll
            });
            Self {
                store,
                epoll,
                waiting,
            }
        }

        /// Reaps until at least one completion came, or nothing is in flight.
        fn some(&mut self) -> Vec<Completion> {
            let mut done = Vec::new();
            let start = Instant::now();
            loop {
                self.store.reap(&mut done);
                if !done.is_empty() || self.store.in_flight() == 0 {
                    return done;
                }
                assert!(start.elapsed() < PATIENCE, "an operation never completed");
                match (self.waiting, &self.epoll) {
                    (Waiting::Call, _) => self.store.wait(PATIENCE),
                    (Waiting::Epoll, Some(epoll)) => {
                        let mut events = [EpollEvent::default()];
                        let millis = i32::try_from(PATIENCE.as_millis()).unwrap();
                        match epoll.wait(millis, &mut events) {
                            Ok(woken) => assert_eq!(woken, 1, "slept through a completion"),
                            // The kernel starts its workers through a signal of its own.
                            Err(e) => assert_eq!(e.kind(), io::ErrorKind::Interrupted),
                        }
                    }
                    (Waiting::Epoll, None) => panic!("in flight, and no event to sleep on"),
                    (Waiting::Polling, _) => std::hint::spin_loop(),
                }
            }
        }

        fn all(&mut self) -> Vec<Completion> {
            let mut done = Vec::new();
            while self.store.in_flight() > 0 {
                done.append(&mut self.some());
            }
            done
        }

        /// Does one operation.
        fn run(&mut self, op: Op) -> Completion {
            self.store.submit(op, 77);
            self.store.kick();
            let mut done = self.all();
            assert_eq!(done.len(), 1);
            let completion = done.remove(0);
            assert_eq!(completion.token, 77);
            completion
        }

        fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
            let mut buf = IoBuf::new(len);
            buf.fill(0xee);
            let completion = self.run(Op::Read { offset, buf });
            completion.result.unwrap();
            completion.buf.unwrap().to_vec()
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) {
            let completion = self.run(Op::Write {
                offset,
                buf: filled(bytes),
            });
            completion.result.unwrap();
            assert_eq!(&*completion.buf.unwrap(), bytes);
        }
    }

    fn filled(bytes: &[u8]) -> IoBuf {
        let mut buf = IoBuf::new(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Everything that the contract promises of a medium of `LEN` zero bytes.
    fn conformance<M: Medium>(what: &str, medium: &M, open: impl Fn(&M) -> M::Store)
    where
        M::Store: 'static,
    {
        println!("{what}: alignment {}", medium.alignment());
        assert_eq!(medium.size().unwrap(), LEN);
        assert!(BLOCK.is_multiple_of(medium.alignment()));
        for waiting in [Waiting::Call, Waiting::Epoll, Waiting::Polling] {
            let rng = Rng::from_env(waiting as u64);
            against_an_array(medium, Channel::new(open(medium), waiting), rng);
        }
        more_than_the_depth(Channel::new(open(medium), Waiting::Epoll));
        ends_of_the_image(medium, Channel::new(open(medium), Waiting::Call));
        metadata_beside_data(medium, Channel::new(open(medium), Waiting::Call));
        deallocation(medium, Channel::new(open(medium), Waiting::Epoll));
        wait_is_bounded(open(medium));
        moves_between_threads(open(medium));
        drop_finishes(medium, &open);
    }

    /// Offset and length of an operation in flight, and whether it is a read.
    type Place = (u64, usize, bool);

    /// Random reads, writes and syncs, many in flight, never two of them on one block.
    fn against_an_array<M: Medium>(medium: &M, mut channel: Channel<M::Store>, mut rng: Rng) {
        const ROUNDS: usize = 300;
        let blocks = LEN / BLOCK;
        let mut model = vec![0; usize::try_from(LEN).unwrap()];
        medium.read_at(0, &mut model).unwrap();
        let range = |offset: u64, len: usize| {
            let start = usize::try_from(offset).unwrap();
            start..start + len
        };
        // Token -> what is expected of it: the place, and of a read that its bytes are the model's.
        let mut pending: Vec<(u64, Option<Place>)> = Vec::new();
        let mut token = 0;
        for _ in 0..ROUNDS {
            for _ in 0..rng.range(1, u64::from(DEPTH)) {
                let first = rng.below(blocks);
                let len = rng.range(1, 8.min(blocks - first)) * BLOCK;
                let (offset, size) = (first * BLOCK, usize::try_from(len).unwrap());
                let clashes = pending.iter().any(|(_, place)| {
                    place.is_some_and(|(at, n, _)| at < offset + len && offset < at + n as u64)
                });
                if clashes {
                    continue;
                }
                token += 1;
                match rng.below(8) {
                    0 => {
                        channel.store.submit(Op::Sync, token);
                        pending.push((token, None));
                    }
                    1..4 => {
                        let buf = IoBuf::new(size);
                        channel.store.submit(Op::Read { offset, buf }, token);
                        pending.push((token, Some((offset, size, true))));
                    }
                    _ => {
                        let bytes = rng.bytes(size);
                        let buf = filled(&bytes);
                        channel.store.submit(Op::Write { offset, buf }, token);
                        model[range(offset, size)].copy_from_slice(&bytes);
                        pending.push((token, Some((offset, size, false))));
                    }
                }
            }
            channel.store.kick();
            for completion in channel.some() {
                let at = pending
                    .iter()
                    .position(|(token, _)| *token == completion.token)
                    .expect("a completion for what was submitted, once");
                let (_, place) = pending.swap_remove(at);
                completion.result.unwrap();
                match place {
                    None => assert!(completion.buf.is_none()),
                    Some((offset, size, is_read)) => {
                        let buf = completion.buf.expect("the buffer comes back");
                        assert_eq!(buf.len(), size);
                        if is_read {
                            assert!(
                                *buf == model[range(offset, size)],
                                "wrong bytes at {offset}"
                            );
                        }
                    }
                }
            }
            assert_eq!(channel.store.in_flight(), pending.len());
        }
        assert_eq!(channel.all().len(), pending.len());
        let mut seen = vec![0; model.len()];
        medium.read_at(0, &mut seen).unwrap();
        assert!(
            seen == model,
            "metadata reads see the data when none is in flight"
        );
    }

    /// What finds no room waits inside, and every batch wakes a sleeper.
    fn more_than_the_depth<S: Store>(mut channel: Channel<S>) {
        const BATCHES: u64 = 300;
        for batch in 0..BATCHES {
            let count = 1 + batch % u64::from(3 * DEPTH);
            for token in 0..count {
                let offset = token * BLOCK;
                let mut buf = IoBuf::new(usize::try_from(BLOCK).unwrap());
                let fill = u8::try_from((batch + token) % 251).unwrap();
                buf.fill(fill);
                channel.store.submit(Op::Write { offset, buf }, token);
            }
            channel.store.kick();
            let mut tokens: Vec<u64> = channel.all().iter().map(|done| done.token).collect();
            tokens.sort_unstable();
            assert_eq!(tokens, (0..count).collect::<Vec<u64>>());
        }
        let last = BATCHES - 1;
        let expected = u8::try_from(last % 251).unwrap();
        assert_eq!(channel.read(0, 4096), vec![expected; 4096]);
    }

    fn ends_of_the_image<M: Medium>(medium: &M, mut channel: Channel<M::Store>) {
        let size = usize::try_from(BLOCK).unwrap();
        let last = vec![0x5a; size];
        channel.write(LEN - BLOCK, &last);
        assert_eq!(channel.read(LEN - BLOCK, size), last);

        for offset in [LEN - BLOCK, LEN] {
            let buf = IoBuf::new(2 * size);
            let past = channel.run(Op::Read { offset, buf });
            assert!(past.result.is_err(), "a short read is no success");
            assert_eq!(past.buf.expect("the buffer comes back").len(), 2 * size);
        }
        let mut bytes = [0; 16];
        assert!(medium.read_at(LEN - 8, &mut bytes).is_err());

        let nothing = channel.run(Op::Read {
            offset: 0,
            buf: IoBuf::new(0),
        });
        nothing.result.unwrap();
        channel
            .run(Op::Deallocate { offset: 0, len: 0 })
            .result
            .unwrap();
    }

    /// Metadata of any alignment, next to data in flight, and both durable by one sync.
    fn metadata_beside_data<M: Medium>(medium: &M, mut channel: Channel<M::Store>) {
        let data = vec![0xd7; 64 << 10];
        for round in 0..20u8 {
            channel.store.submit(
                Op::Write {
                    offset: 64 << 10,
                    buf: filled(&data),
                },
                1,
            );
            channel.store.kick();
            let record = [round; 72];
            medium.write_at(1000, &record).unwrap();
            let mut seen = [0; 72];
            medium.read_at(1000, &mut seen).unwrap();
            assert_eq!(seen, record);
            assert_eq!(channel.all().len(), 1);
        }
        channel.run(Op::Sync).result.unwrap();
        medium.sync().unwrap();
        assert_eq!(channel.read(64 << 10, data.len()), data);
    }

    fn deallocation<M: Medium>(_medium: &M, mut channel: Channel<M::Store>) {
        let bytes = vec![0xab; 1 << 20];
        channel.write(1 << 20, &bytes);
        let gone = Op::Deallocate {
            offset: (1 << 20) + BLOCK,
            len: (1 << 20) - 2 * BLOCK,
        };
        channel.run(gone).result.unwrap();
        let seen = channel.read(1 << 20, 1 << 20);
        let block = usize::try_from(BLOCK).unwrap();
        let (first, rest) = seen.split_at(block);
        let (middle, last) = rest.split_at(rest.len() - block);
        assert!(first.iter().chain(last).all(|byte| *byte == 0xab));
        assert!(middle.iter().all(|byte| *byte == 0xab || *byte == 0));
        // What was given back can be written again.
        channel.write(1 << 20, &bytes);
        assert!(channel.read(1 << 20, 1 << 20) == bytes);
    }

    fn wait_is_bounded<S: Store>(mut store: S) {
        let start = Instant::now();
        store.wait(Duration::from_secs(3600));
        assert!(start.elapsed() < PATIENCE, "nothing is in flight");
        assert_eq!(store.in_flight(), 0);
    }

    /// Made here, used and dropped there.
    fn moves_between_threads<S: Store + 'static>(store: S) {
        let worker = std::thread::spawn(move || {
            let mut channel = Channel::new(store, Waiting::Epoll);
            channel.write(0, &[0x11; 8192]);
            channel.run(Op::Sync).result.unwrap();
            assert_eq!(channel.read(4096, 4096), vec![0x11; 4096]);
        });
        worker.join().unwrap();
    }

    /// What was kicked happens, also when nobody waits for it.
    fn drop_finishes<M: Medium>(medium: &M, open: &impl Fn(&M) -> M::Store) {
        for round in 1..=20u8 {
            let mut store = open(medium);
            for token in 0..u64::from(2 * DEPTH) {
                let offset = token * (64 << 10);
                let buf = filled(&vec![round; 64 << 10]);
                store.submit(Op::Write { offset, buf }, token);
            }
            store.kick();
            drop(store);
            let mut seen = vec![0; 64 << 10];
            medium.read_at(0, &mut seen).unwrap();
            assert!(seen.iter().all(|byte| *byte == round));
        }
    }

    /// A directory on the disk that the build is on: `tempfile`'s own default may be a tmpfs.
    fn on_disk() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
    }

    fn on_tmpfs() -> Option<tempfile::TempDir> {
        match tempfile::tempdir_in("/dev/shm") {
            Ok(dir) => Some(dir),
            Err(e) => {
                println!("skipped: no tmpfs at /dev/shm: {e}");
                None
            }
        }
    }

    fn file_in(dir: &Path, cache: Cache) -> FileMedium {
        let mut medium = FileMedium::create(&dir.join("image"), LEN, false).unwrap();
        medium.enable_data(cache, BLOCK).unwrap();
        medium
    }

    fn ring(medium: &FileMedium) -> <FileMedium as Medium>::Store {
        let store = medium.open_store(DEPTH).unwrap();
        if !store.has_ring() {
            println!("no io_uring on this host: the synchronous channel was tested instead");
        }
        store
    }

    #[test]
    fn memory_conforms() {
        conformance("memory", &MemMedium::new(LEN), |m| {
            m.open_store(DEPTH).unwrap()
        });
        let shuffled = MemMedium::new(LEN);
        shuffled.control().reorder(Some(1));
        conformance("memory, shuffled", &shuffled, |m| {
            m.open_store(DEPTH).unwrap()
        });
        assert!(shuffled.control().counts().shuffled > 100);
    }

    #[test]
    fn disk_with_direct_io_conforms() {
        let dir = on_disk();
        let medium = file_in(dir.path(), Cache::Direct);
        if !medium.is_direct() {
            println!("no direct I/O under {}", dir.path().display());
        }
        conformance("disk, direct if it can", &medium, ring);
        println!("direct: {}", medium.is_direct());
        conformance_of_synchronous(&medium);
    }

    fn conformance_of_synchronous(medium: &FileMedium) {
        conformance("synchronous", medium, |m| {
            let store = m.open_synchronous(DEPTH);
            assert!(store.event().is_none() && !store.has_ring());
            store
        });
    }

    #[test]
    fn disk_through_the_page_cache_conforms() {
        let dir = on_disk();
        let medium = file_in(dir.path(), Cache::Writeback);
        assert!(!medium.is_direct());
        conformance("disk, page cache", &medium, ring);
        conformance_of_synchronous(&medium);
    }

    #[test]
    fn tmpfs_conforms_and_is_never_direct() {
        let Some(dir) = on_tmpfs() else { return };
        for cache in [Cache::Direct, Cache::Writeback] {
            let path = dir.path().join("image");
            let mut medium = FileMedium::create(&path, LEN, true).unwrap();
            medium.enable_data(cache, BLOCK).unwrap();
            assert!(!medium.is_direct());
            assert_eq!(medium.alignment(), 1);
            conformance("tmpfs", &medium, ring);
            conformance_of_synchronous(&medium);
        }
    }

    /// A loop device over a file, detached at the end.
    struct Loop(PathBuf);

    impl Loop {
        fn attach(file: &Path, sector: u64) -> Result<Self, String> {
            let made = Command::new("losetup")
                .args(["--find", "--show", "--sector-size"])
                .arg(sector.to_string())
                .arg(file)
                .output()
                .map_err(|e| e.to_string())?;
            if !made.status.success() {
                return Err(String::from_utf8_lossy(&made.stderr).into_owned());
            }
            let path = String::from_utf8(made.stdout).map_err(|e| e.to_string())?;
            Ok(Self(path.trim_end().into()))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup")
                .arg("--detach")
                .arg(&self.0)
                .status();
        }
    }

    #[test]
    fn block_device_conforms() {
        for sector in [512, 4096] {
            let dir = on_disk();
            let backing = dir.path().join("backing");
            File::create(&backing).unwrap().set_len(LEN).unwrap();
            let device = match Loop::attach(&backing, sector) {
                Ok(device) => device,
                Err(e) => return println!("skipped: no loop device: {e}"),
            };
            let too_large = FileMedium::create(&device.0, LEN + 1, true).unwrap_err();
            assert!(matches!(too_large, OpenError::TooSmall { have: LEN, .. }));

            let mut medium = FileMedium::create(&device.0, LEN, false).unwrap();
            assert!(medium.is_block_device());
            medium.enable_data(Cache::Direct, 512).unwrap();
            println!("sectors of {sector}: direct {}", medium.is_direct());
            if sector == 4096 {
                assert!(
                    !medium.is_direct(),
                    "blocks of 512 cannot go to sectors of 4096 directly"
                );
                medium.enable_data(Cache::Direct, BLOCK).unwrap();
            }
            conformance("block device", &medium, ring);

            let twice = FileMedium::open(&device.0, Access::ReadWrite).unwrap_err();
            assert!(matches!(twice, OpenError::InUse { .. }), "{twice}");
            drop(medium);
            let occupied = FileMedium::create(&device.0, LEN, false).unwrap_err();
            assert!(matches!(occupied, OpenError::Occupied { .. }), "{occupied}");
            assert!(occupied.to_string().contains("--force"));
            FileMedium::create(&device.0, LEN, true).unwrap();
            let read_only = FileMedium::open(&device.0, Access::ReadOnly).unwrap();
            assert_eq!(read_only.size().unwrap(), LEN);
        }
    }

    #[test]
    fn a_cold_read_through_the_page_cache_waits_in_the_ring() {
        let dir = on_disk();
        let path = dir.path().join("image");
        let bytes: Vec<u8> = Rng::from_env(9).bytes(1 << 20);
        {
            let medium = file_in(dir.path(), Cache::Direct);
            if !medium.is_direct() {
                return println!("skipped: no direct I/O, so nothing is cold");
            }
            let mut channel = Channel::new(ring(&medium), Waiting::Call);
            channel.write(0, &bytes);
            channel.run(Op::Sync).result.unwrap();
        }
        let mut medium = FileMedium::open(&path, Access::ReadOnly).unwrap();
        medium.enable_data(Cache::Writeback, BLOCK).unwrap();
        // A part of the range is warm, so that the read comes back short at first.
        let mut warm = [0; 4096];
        medium.read_at(0, &mut warm).unwrap();
        let mut channel = Channel::new(ring(&medium), Waiting::Epoll);
        for _ in 0..2 {
            assert!(channel.read(0, 1 << 20) == bytes);
        }
        let refused = channel.run(Op::Write {
            offset: 0,
            buf: IoBuf::new(4096),
        });
        assert!(refused.result.is_err(), "read-only is read-only");
    }

    #[test]
    fn deallocated_extents_leave_the_file() {
        let dir = on_disk();
        let medium = file_in(dir.path(), Cache::Direct);
        let blocks = || std::fs::metadata(medium.path()).unwrap().blocks();
        assert_eq!(blocks(), 0, "a new image is sparse");
        let mut channel = Channel::new(ring(&medium), Waiting::Epoll);
        channel.write(0, &vec![1; 2 << 20]);
        channel.run(Op::Sync).result.unwrap();
        let before = blocks();
        assert!(before >= 4096, "{before} sectors");
        let gone = Op::Deallocate {
            offset: 0,
            len: 1 << 20,
        };
        channel.run(gone).result.unwrap();
        channel.run(Op::Sync).result.unwrap();
        assert!(
            blocks() <= before - 2048,
            "{} sectors of {before}",
            blocks()
        );
        assert_eq!(medium.size().unwrap(), LEN);
        assert_eq!(channel.read(0, 4096), vec![0; 4096]);
    }

    #[test]
    fn a_medium_that_keeps_its_space_gives_nothing_back() {
        let dir = on_disk();
        let mut medium = file_in(dir.path(), Cache::Direct);
        medium.keep_space();
        medium.enable_data(Cache::Direct, BLOCK).unwrap();
        let mut channel = Channel::new(ring(&medium), Waiting::Epoll);
        let written = vec![1; 1 << 20];
        channel.write(0, &written);
        channel.run(Op::Sync).result.unwrap();
        let blocks = || std::fs::metadata(medium.path()).unwrap().blocks();
        let before = blocks();
        let gone = Op::Deallocate {
            offset: 0,
            len: 1 << 20,
        };
        channel.run(gone).result.unwrap();
        channel.run(Op::Sync).result.unwrap();
        assert_eq!(blocks(), before);
        assert!(channel.read(0, 1 << 20) == written);
    }

    #[test]
    fn reading_a_hole_of_an_image_in_memory_leaves_it_a_hole() {
        let Some(dir) = on_tmpfs() else { return };
        let medium = file_in(dir.path(), Cache::Writeback);
        let blocks = || std::fs::metadata(medium.path()).unwrap().blocks();
        let mut channel = Channel::new(ring(&medium), Waiting::Epoll);
        channel.write(1 << 20, &[7; 4096]);
        assert_eq!(blocks(), 8);
        assert_eq!(channel.read((1 << 20) - 4096, 12288)[4096..8192], [7; 4096]);
        assert_eq!(channel.read(0, 65536), vec![0; 65536]);
        channel.write((1 << 20) + 512, &[8; 512]);
        assert_eq!(channel.read((1 << 20) + 512, 512), [8; 512]);
        assert_eq!(blocks(), 8);
        let gone = Op::Deallocate {
            offset: 1 << 20,
            len: 4096,
        };
        channel.run(gone).result.unwrap();
        assert_eq!(channel.read(1 << 20, 4096), vec![0; 4096]);
        assert_eq!(blocks(), 0);
    }

    #[test]
    fn an_image_in_memory_that_shrinks_fails_what_is_gone_and_nothing_else() {
        let Some(dir) = on_tmpfs() else { return };
        let medium = file_in(dir.path(), Cache::Writeback);
        let mut channel = Channel::new(ring(&medium), Waiting::Epoll);
        channel.write(0, &vec![7; 1 << 20]);
        assert_eq!(channel.read(0, 4096), [7; 4096]);
        let file = File::options().write(true).open(medium.path()).unwrap();
        file.set_len(512 << 10).unwrap();
        let beyond = Op::Read {
            offset: 768 << 10,
            buf: IoBuf::new(4096),
        };
        assert!(channel.run(beyond).result.is_err());
        assert_eq!(channel.read(256 << 10, 4096), [7; 4096]);
        channel.write(256 << 10, &[8; 4096]);
        assert_eq!(channel.read(256 << 10, 4096), [8; 4096]);
    }

    #[test]
    fn create_makes_what_was_asked_for_and_destroys_nothing() {
        let dir = on_disk();
        let path = dir.path().join("image");
        let medium = FileMedium::create(&path, 12345 * 512, false).unwrap();
        let made = std::fs::metadata(&path).unwrap();
        assert_eq!(made.len(), 12345 * 512);
        assert_eq!(made.permissions().mode() & 0o777, 0o600);
        assert_eq!(made.blocks(), 0);
        medium.write_at(0, b"mine").unwrap();
        drop(medium);

        let refused = FileMedium::create(&path, LEN, false).unwrap_err();
        assert!(matches!(refused, OpenError::Occupied { .. }));
        let text = refused.to_string();
        assert!(text.contains("image") && text.contains("--force"), "{text}");
        let mut kept = [0; 4];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut kept, 0)
            .unwrap();
        assert_eq!(&kept, b"mine");

        let forced = FileMedium::create(&path, LEN, true).unwrap();
        forced.read_at(0, &mut kept).unwrap();
        assert_eq!(kept, [0; 4]);
        assert_eq!(forced.size().unwrap(), LEN);

        // In use: not even by force.
        let in_use = FileMedium::create(&path, 512, true).unwrap_err();
        assert!(matches!(in_use, OpenError::InUse { .. }));
        assert_eq!(forced.size().unwrap(), LEN);

        // An empty file that is there already is taken.
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        assert_eq!(
            FileMedium::create(&empty, LEN, false)
                .unwrap()
                .size()
                .unwrap(),
            LEN
        );

        // One that cannot be made leaves nothing behind.
        let huge = dir.path().join("huge");
        assert!(FileMedium::create(&huge, u64::MAX / 2, false).is_err());
        assert!(!huge.exists());
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let dir = on_disk();
        let missing = dir.path().join("missing");
        let error = FileMedium::open(&missing, Access::ReadOnly).unwrap_err();
        assert!(
            error.to_string().contains("missing: cannot open"),
            "{error}"
        );
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = FileMedium::open(dir.path(), access).unwrap_err();
            assert!(matches!(error, OpenError::NotAnImage { .. }), "{error}");
            let error = FileMedium::open(Path::new("/dev/null"), access).unwrap_err();
            assert!(matches!(error, OpenError::NotAnImage { .. }), "{error}");
        }
        let error = FileMedium::create(dir.path(), LEN, true).unwrap_err();
        assert!(matches!(error, OpenError::NotAnImage { .. }), "{error}");
        let error = FileMedium::create(&dir.path().join("no/such"), LEN, true).unwrap_err();
        assert!(error.to_string().contains("cannot create"), "{error}");
    }

    #[test]
    fn a_file_that_was_replaced_meanwhile_is_noticed() {
        let dir = on_disk();
        let mut medium = file_in(dir.path(), Cache::Writeback);
        std::fs::rename(medium.path(), dir.path().join("old")).unwrap();
        File::create(medium.path()).unwrap().set_len(LEN).unwrap();
        match medium.enable_data(Cache::Direct, BLOCK) {
            Err(OpenError::Replaced { .. }) => {}
            Ok(()) => assert!(!medium.is_direct(), "direct I/O to another file"),
            Err(e) => panic!("{e}"),
        }
    }

    /// What the child of [`one_writer_at_a_time`] says by its exit code.
    const CHILD_IN_USE: i32 = 3;
    const CHILD_OPENED: i32 = 4;
    const CHILD_PATH: &str = "ZONEVAULT_TEST_LOCK";

    #[test]
    fn one_writer_at_a_time() {
        if let Some(path) = std::env::var_os(CHILD_PATH) {
            let code = match FileMedium::open(Path::new(&path), Access::ReadWrite) {
                Ok(_) => CHILD_OPENED,
                Err(OpenError::InUse { path: named }) if named == path => CHILD_IN_USE,
                Err(e) => panic!("{e}"),
            };
            std::process::exit(code);
        }
        let dir = on_disk();
        let mut medium = file_in(dir.path(), Cache::Writeback);
        let path = medium.path().to_owned();
        let child = || {
            let exe = std::env::current_exe().unwrap();
            let status = Command::new(exe)
                .args(["--exact", "tests::one_writer_at_a_time"])
                .env(CHILD_PATH, &path)
                .status()
                .unwrap();
            status.code().unwrap()
        };
        let second = FileMedium::open(&path, Access::ReadWrite).unwrap_err();
        assert!(matches!(second, OpenError::InUse { .. }));
        assert!(second.to_string().contains(&path.display().to_string()));
        assert_eq!(child(), CHILD_IN_USE);
        // Looking is allowed, and the end of the look does not end the lock.
        drop(FileMedium::open(&path, Access::ReadOnly).unwrap());
        assert_eq!(child(), CHILD_IN_USE);
        // The lock lasts as long as anybody may write.
        medium.enable_data(Cache::Direct, BLOCK).unwrap();
        let store = ring(&medium);
        drop(medium);
        assert_eq!(child(), CHILD_IN_USE);
        drop(store);
        assert_eq!(child(), CHILD_OPENED);
    }

    #[test]
    fn errors_of_the_kernel_come_back_with_the_buffer() {
        let dir = on_disk();
        let path = file_in(dir.path(), Cache::Direct).path().to_owned();
        for cache in [Cache::Direct, Cache::Writeback] {
            let mut medium = FileMedium::open(&path, Access::ReadOnly).unwrap();
            medium.enable_data(cache, BLOCK).unwrap();
            let mut channel = Channel::new(ring(&medium), Waiting::Epoll);
            let buf = filled(&[7; 4096]);
            let refused = channel.run(Op::Write { offset: 0, buf });
            let error = refused.result.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
            assert_eq!(*refused.buf.unwrap(), [7; 4096]);
            let refused = channel.run(Op::Deallocate {
                offset: 0,
                len: 4096,
            });
            assert!(refused.result.is_err() && refused.buf.is_none());
            assert!(medium.write_at(0, b"x").is_err());
        }
    }

    /// Figures, not a test: `cargo test --release --test store -- --ignored --nocapture iops`.
    #[test]
    #[ignore = "measures for half a minute; prints IOPS of one thread"]
    fn iops() {
        const SIZE: u64 = 1 << 30;
        const TIME: Duration = Duration::from_secs(3);
        let disk = on_disk();
        let dirs = [
            ("tmpfs, page cache", on_tmpfs(), Cache::Writeback),
            ("disk, direct", Some(disk), Cache::Direct),
        ];
        for (what, dir, cache) in dirs {
            let Some(dir) = dir else { continue };
            let mut medium = FileMedium::create(&dir.path().join("image"), SIZE, false).unwrap();
            for at in (0..SIZE).step_by(1 << 20) {
                medium.write_at(at, &vec![0x5c; 1 << 20]).unwrap();
            }
            medium.sync().unwrap();
            medium.enable_data(cache, BLOCK).unwrap();
            for (name, size, depth) in [("4K", 4096, 1), ("4K", 4096, 32), ("128K", 128 << 10, 16)]
            {
                for writes in [false, true] {
                    let (rate, cpu) = measure(&medium, SIZE, size, depth, writes, TIME);
                    let kind = if writes { "write" } else { "read" };
                    println!(
                        "{what} (direct: {}): {name} random {kind} QD {depth}: {:.1} kIOPS, {:.0} MiB/s, \
                     {cpu:.2} us of CPU each",
                        medium.is_direct(),
                        rate / 1e3,
                        rate * f64::from(size) / f64::from(1 << 20),
                    );
                }
            }
        }
    }

    /// Nanoseconds that this thread has run, which other load on the machine changes little.
    fn cpu_time() -> f64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }

    /// Operations a second with `depth` in flight, and the CPU time of one in microseconds, as a worker drives a store:
    /// sleeping in epoll when there is nothing.
    fn measure(
        medium: &FileMedium,
        len: u64,
        size: u32,
        depth: u32,
        writes: bool,
        time: Duration,
    ) -> (f64, f64) {
        let mut rng = Rng::new(1);
        let mut channel = Channel::new(medium.open_store(depth).unwrap(), Waiting::Epoll);
        let mut idle: Vec<IoBuf> = (0..depth)
            .map(|_| IoBuf::new(usize::try_from(size).unwrap()))
            .collect();
        let mut done = Vec::with_capacity(depth as usize);
        let mut count = 0u32;
        let (start, cpu) = (Instant::now(), cpu_time());
        while start.elapsed() < time {
            while let Some(buf) = idle.pop() {
                let offset = rng.below(len / u64::from(size)) * u64::from(size);
                let op = match writes {
                    true => Op::Write { offset, buf },
                    false => Op::Read { offset, buf },
                };
                channel.store.submit(op, 0);
            }
            channel.store.kick();
            channel.store.reap(&mut done);
            if done.is_empty() {
                done.append(&mut channel.some());
            }
            for completion in done.drain(..) {
                completion.result.unwrap();
                idle.extend(completion.buf);
                count += 1;
            }
        }
        let rate = f64::from(count) / start.elapsed().as_secs_f64();
        let cpu = (cpu_time() - cpu) / f64::from(count) / 1e3;
        channel.all();
        (rate, cpu)
    }
}
