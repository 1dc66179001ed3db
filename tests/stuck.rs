//! A host's disk that fails the device itself, and a front-end that holds its threads: the thread that
//! talks with front-ends goes on all the same, and the server comes to its end.
//!
//! The server runs in this process, on a disk whose calls fail or stay in the kernel as told.

#[cfg(test)]
pub mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::{Receiver, channel};
    use std::sync::{Arc, Condvar, Mutex};
    use std::thread;
    use std::time::{Duration, Instant};

    use vhost::vhost_user::message::FrontendReq;
    use vmm_sys_util::eventfd::EventFd;
    use zonevault::device::{
        AllowedUids, DeviceOptions, Ending, ServeError, Server, Stop, WithoutInflight,
    };
    use zonevault::format::image::unlock;
    use zonevault::request::DeviceLimits;
    use zonevault::secret::Credential;
    use zonevault::store::{Access, Cache, FileMedium, FileStore, Medium};
    use zonevault::volume::{Options as VolumeOptions, Volume};

    use crate::common::daemon::Image;
    use crate::common::disk::{SMALL, ZONE, block};
    use crate::common::frontend::{Frontend, Options};
    use crate::common::request::{Layout, Request};
    use crate::common::wire::{WireError, longs};

    const QUEUES: u16 = 2;
    /// Longer than the device's own patience with a dead disk, twice.
    const PATIENCE: Duration = Duration::from_secs(180);
    /// Starts of a queue that fail.
    const FAILURES: u32 = 3;
    /// As far as an eventfd counts.
    const FULL: u64 = u64::MAX - 1;

    /// What ails a disk.
    #[derive(Debug, Default)]
    struct Ailment {
        /// Channels that cannot be opened yet.
        refusals: AtomicU32,
        /// Whether writes of metadata stay in the kernel.
        dead: Mutex<bool>,
        revived: Condvar,
        /// Threads that are there.
        stuck: AtomicU32,
    }

    impl Ailment {
        fn pass(&self) {
            let mut dead = self.dead.lock().unwrap();
            if *dead {
                self.stuck.fetch_add(1, Ordering::SeqCst);
            }
            while *dead {
                dead = self.revived.wait(dead).unwrap();
            }
        }

        fn die(&self) {
            *self.dead.lock().unwrap() = true;
        }

        fn revive(&self) {
            *self.dead.lock().unwrap() = false;
            self.revived.notify_all();
        }
    }

    #[derive(Debug)]
    struct Ailing {
        file: FileMedium,
        ailment: Arc<Ailment>,
    }

    impl Medium for Ailing {
        type Store = FileStore;

        fn open_store(&self, depth: u32) -> io::Result<FileStore> {
            let less = |left: u32| left.checked_sub(1);
            let refusals = &self.ailment.refusals;
            match refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
                Ok(_) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                Err(_) => self.file.open_store(depth),
            }
        }

        fn size(&self) -> io::Result<u64> {
            self.file.size()
        }

        fn alignment(&self) -> u64 {
            self.file.alignment()
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.file.read_at(offset, buf)
        }

        fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
            self.ailment.pass();
            self.file.write_at(offset, buf)
        }

        fn forget_cached(&self) {
            self.file.forget_cached();
        }

        fn sync(&self) -> io::Result<()> {
            self.file.sync()
        }
    }

    /// A server in this process.
    struct Served {
        _image: Image,
        socket: PathBuf,
        ailment: Arc<Ailment>,
        stop: Arc<Stop>,
        ended: Receiver<Result<Ending, ServeError>>,
    }

    fn open(image: &Image, ailment: &Arc<Ailment>) -> Volume<Ailing> {
        let mut file = FileMedium::open(&image.path(), Access::ReadWrite).unwrap();
        let unlocked = unlock(&file, &Credential::from_key_file(&image.key()).unwrap()).unwrap();
        let block = unlocked.geometry().block_size().bytes();
        file.enable_data(Cache::Writeback, block).unwrap();
        let medium = Ailing {
            file,
            ailment: Arc::clone(ailment),
        };
        let options = VolumeOptions {
            queues: QUEUES,
            ..VolumeOptions::default()
        };
        Volume::open(medium, unlocked, options).unwrap()
    }

    impl Served {
        fn new() -> Self {
            let image = Image::create(&SMALL);
            let ailment = Arc::new(Ailment::default());
            let volume = Arc::new(open(&image, &ailment));
            let socket = image.dir().join("sock");
            let mut server = Server::bind(&socket, AllowedUids::default()).unwrap();
            let options = DeviceOptions {
                limits: DeviceLimits {
                    queues: QUEUES,
                    queue_size: 128,
                },
                serial: [b'0'; 20],
                poll: Duration::ZERO,
                stats: Vec::new(),
                without_inflight: WithoutInflight::Refuse,
                thread_started: Default::default(),
            };
            let stop = Arc::new(Stop::new().unwrap());
            let (tell, ended) = channel();
            let stopped = Arc::clone(&stop);
            thread::spawn(move || {
                tell.send(server.run(&volume, &options, &stopped)).unwrap();
            });
            Self {
                _image: image,
                socket,
                ailment,
                stop,
                ended,
            }
        }

        fn connect(&self) -> Frontend {
            Frontend::open_with(&self.socket, Options::queues(QUEUES))
        }

        /// Has the thread of the first queue stay in the kernel.
        fn get_stuck(&self, f: &mut Frontend) {
            let before = self.ailment.stuck.load(Ordering::SeqCst);
            self.ailment.die();
            let append = Request::append(4 * ZONE, &block(1), 16);
            f.queue().submit(&append, &Layout::indirect()).unwrap();
            f.queue().kick();
            until(|| self.ailment.stuck.load(Ordering::SeqCst) > before);
        }

        /// Asks for the end, and returns how it came.
        fn end(&self) -> Ending {
            self.stop.request();
            let ended = self.ended.recv_timeout(PATIENCE);
            ended.expect("the server does not end").unwrap()
        }
    }

    fn until(mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "it does not happen");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_queue_that_could_not_be_started_is_tried_again() {
        let served = Served::new();
        served.ailment.refusals.store(FAILURES, Ordering::SeqCst);
        let mut f = served.connect();
        // The one kick of this read comes while the queue cannot be started.
        f.queue().assert_alive();
        assert_eq!(served.ailment.refusals.load(Ordering::SeqCst), 0);
        f.queues[1].assert_alive();
        drop(f);
        assert_eq!(served.end(), Ending::InOrder);
    }

    #[test]
    fn a_dead_disk_keeps_no_new_front_end_from_its_answers() {
        let served = Served::new();
        let mut f = served.connect();
        served.get_stuck(&mut f);
        drop(f);
        let answers = Instant::now();
        let mut second = loop {
            // The server looks for the first one's requests for a while before it takes the next.
            match Frontend::negotiate(&served.socket, Options::queues(QUEUES)) {
                Ok(second) => break second,
                Err(WireError::TimedOut) => assert!(answers.elapsed() < PATIENCE, "no answer"),
                Err(e) => panic!("{e}"),
            }
        };
        match second.set_features() {
            Err(WireError::Refused(_)) => {}
            other => panic!("a device with a stuck queue: {other:?}"),
        }
        drop(second);
        // The disk comes back: what was in flight ends unheard, and everything works.
        served.ailment.revive();
        let mut third = loop {
            match Frontend::start(&served.socket, Options::queues(QUEUES)) {
                Ok(third) => break third,
                Err(e) => assert!(answers.elapsed() < PATIENCE, "{e}"),
            }
        };
        third
            .queues
            .iter_mut()
            .for_each(crate::common::queue::Queue::assert_alive);
        drop(third);
        assert_eq!(served.end(), Ending::InOrder);
    }

    #[test]
    fn a_dead_disk_does_not_hold_up_the_end() {
        let served = Served::new();
        let mut f = served.connect();
        served.get_stuck(&mut f);
        assert_eq!(served.end(), Ending::Stuck, "it must not be closed");
        served.ailment.revive();
    }

    /// Whether a thread of this process is in write(2).
    fn writes(name: &str) -> bool {
        fs::read_dir("/proc/self/task").unwrap().any(|task| {
            let task = task.unwrap().path();
            let text = |what: &str| fs::read_to_string(task.join(what)).unwrap_or_default();
            let call = text("syscall");
            let number = call.split(' ').next().unwrap();
            text("comm").trim_end() == name && number == libc::SYS_write.to_string()
        })
    }

    #[test]
    fn a_call_event_that_is_always_full_does_not_hold_up_the_end() {
        let served = Served::new();
        let mut f = served.connect();
        let call = Arc::new(EventFd::new(0).unwrap());
        call.write(FULL).unwrap();
        for _ in 0..8 {
            let call = Arc::clone(&call);
            // Each waits to fill it again as soon as somebody empties it, to the end of the process.
            thread::spawn(move || while call.write(FULL).is_ok() {});
        }
        let code = FrontendReq::SET_VRING_CALL;
        f.stop_queue(0).unwrap();
        f.wire
            .tell(code, &longs(&[0]), &[call.as_raw_fd()])
            .unwrap();
        until(|| writes("queue-0"));
        assert_eq!(served.end(), Ending::InOrder);
    }
}
