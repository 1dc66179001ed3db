//! A host's disk that answers no more while the daemon closes the image: it ends all the same, and says what was not
//! done. Needs root and /dev/fuse.

#[cfg(test)]
pub mod common;
#[cfg(test)]
pub mod forgetful;

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use crate::common::daemon::{Daemon, Image};
    use crate::common::frontend::Frontend;
    use crate::common::request::status;
    use crate::common::rng::Rng;
    use crate::forgetful::medium::Keep;
    use crate::forgetful::mount::Mount;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn served(image: &Image) -> Daemon {
        Daemon::serve(image, &["--close-timeout", "1"])
    }

    #[test]
    fn a_disk_that_dies_while_it_is_idle_does_not_put_off_the_end_for_ever() {
        let mount = Mount::new(&["disk"], None);
        let image = Image::empty();
        std::os::unix::fs::symlink(mount.path("disk"), image.path()).unwrap();
        let out = image.run_create(&["--size", "8M", "--zone-size", "1M"]);
        assert!(out.status.success(), "create: {out:?}");
        let mut daemon = served(&image);
        let mut f = Frontend::open(daemon.socket());
        assert_eq!(f.queue().append(0, &[7; 4096], 9), (status::OK, 0));
        drop(f);
        mount.freeze();
        daemon.signal(libc::SIGTERM);
        let asked = Instant::now();
        while !daemon.log().contains("not closed within 1 seconds") {
            assert!(asked.elapsed() < PATIENCE, "{}", daemon.log());
            thread::sleep(Duration::from_millis(10));
        }
        assert!(daemon.log().contains("what was written is being synced"));
        // The kernel lets go of the process when its disk answers.
        mount.cut(Keep::Everything, &mut Rng::new(1));
        assert_eq!(daemon.wait_exit().code(), Some(1), "{}", daemon.log());
        // As after a kill: nothing that was acknowledged is lost.
        let daemon = served(&image);
        let mut f = Frontend::open(daemon.socket());
        assert_eq!(f.queue().read_ok(0, 4096), [7; 4096]);
        // Not before: the socket is there while the disk is being opened.
        assert!(daemon.log().contains("was killed: going on exactly"));
        drop(f);
        daemon.stop();
    }
}
