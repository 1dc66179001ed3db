//! Front-ends that do not keep what is in flight, when the daemon is killed: nobody knows what was done.

#[cfg(test)]
pub mod common;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::common::daemon::Rig;
    use crate::common::frontend::Frontend;
    use crate::common::request::{Layout, Request, status};

    const ZONED: [&str; 4] = ["--size", "16M", "--zone-size", "1M"];
    /// A queue that is not served answers nothing for so long.
    const SILENCE: Duration = Duration::from_millis(500);
    const PATIENCE: Duration = Duration::from_secs(10);

    fn appended(rig: &Rig) -> Frontend {
        let mut f = Frontend::open(&rig.socket());
        assert_eq!(f.queue().append(0, &[7; 4096], 16).0, status::OK);
        f
    }

    #[test]
    fn a_ring_in_use_is_not_served_before_the_guest_starts_anew() {
        let mut rig = Rig::new(&ZONED, &[]);
        let mut f = appended(&rig);
        rig.crash();
        f.reconnect().unwrap();
        let append = Request::append(0, &[8; 4096], 16);
        let ticket = f.queue().submit(&append, &Layout::indirect()).unwrap();
        f.queue().kick();
        assert!(f.queue().wait(ticket, SILENCE).is_err());
        assert!(rig.log().contains("--without-inflight resume"));
        // Not by trying again either.
        f.reconnect().unwrap();
        assert!(f.queue().wait(ticket, SILENCE).is_err());
        drop(f);
        let mut f = Frontend::open(&rig.socket());
        assert_eq!(f.queue().append(0, &[9; 4096], 16), (status::OK, 8));
        // What this one had in flight is known.
        f.reconnect().unwrap();
        assert_eq!(f.queue().append(0, &[9; 4096], 16), (status::OK, 16));
    }

    #[test]
    fn nor_after_a_daemon_that_did_not_serve_it_ended_in_order() {
        let mut rig = Rig::new(&ZONED, &[]);
        let mut f = appended(&rig);
        rig.crash();
        rig.restart();
        assert!(
            rig.log()
                .contains("left as the killed daemon before this one did")
        );
        f.reconnect().unwrap();
        let append = Request::append(0, &[8; 4096], 16);
        let ticket = f.queue().submit(&append, &Layout::indirect()).unwrap();
        f.queue().kick();
        assert!(f.queue().wait(ticket, SILENCE).is_err());
        drop(f);
        let mut f = Frontend::open(&rig.socket());
        assert_eq!(f.queue().append(0, &[9; 4096], 16), (status::OK, 8));
    }

    #[test]
    fn or_goes_on_if_told_to() {
        let mut rig = Rig::new(&ZONED, &["--without-inflight", "resume"]);
        let mut f = appended(&rig);
        rig.crash();
        f.reconnect().unwrap();
        let append = Request::append(0, &[8; 4096], 16);
        let ticket = f.queue().submit(&append, &Layout::indirect()).unwrap();
        f.queue().kick();
        let done = f.queue().wait(ticket, PATIENCE).unwrap();
        assert_eq!(done.status(), status::OK);
        assert!(rig.log().contains("may be done twice"));
    }

    #[test]
    fn a_daemon_that_ended_in_order_left_nothing_unknown() {
        let mut rig = Rig::new(&ZONED, &[]);
        let mut f = appended(&rig);
        rig.restart();
        f.reconnect().unwrap();
        assert_eq!(f.queue().append(0, &[9; 4096], 16), (status::OK, 8));
    }
}
