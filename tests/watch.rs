//! When a worker goes on and when it comes to rest: a pass that can do nothing is not worth a core.

#[cfg(test)]
pub mod pipeline;

#[cfg(test)]
mod tests {
    use virtio_queue::QueueT;
    use zonevault::crypt::Cipher;
    use zonevault::geometry::Model;
    use zonevault::store::mem::{Kind, MemMedium};

    use crate::pipeline::guest::{RING, Request};
    use crate::pipeline::{Rig, Shape};

    const LARGE: u32 = 128 << 10;
    /// Requests of that size that a ring of these tests holds; more than a channel has buffers for.
    const MANY: u64 = 32;

    fn rig() -> (Rig<MemMedium>, MemMedium) {
        let shape = Shape::new(Model::Plain, Cipher::Aes256Xts);
        let medium = MemMedium::new(shape.image_len());
        (Rig::new(medium.clone(), &shape, |_| {}), medium)
    }

    fn write(number: u64) -> Request {
        Request::Write {
            sector: number * u64::from(LARGE) / 512 * 2,
            len: LARGE,
        }
    }

    #[test]
    fn a_ring_that_broke_is_not_looked_at_any_more() {
        let (mut rig, _medium) = rig();
        rig.guest.claim(RING + 1);
        assert!(rig.sees_something(), "one pass must find out");
        assert!(!rig.pass().again);
        assert!(!rig.sees_something(), "watched");
        assert!(!rig.rest(), "more than a ring holds");
        // The guest takes it back; nobody listens.
        rig.guest.claim(0);
        rig.guest.submit(write(0));
        assert!(!rig.pass().again);
        assert!(!rig.sees_something(), "watched, and nothing may be taken");
        assert!(!rig.rest(), "nothing may be taken");
    }

    #[test]
    fn what_waits_in_the_ring_is_no_work_while_there_is_no_room() {
        let (mut rig, medium) = rig();
        let control = medium.control();
        control.hold(&[Kind::Write]);
        for number in 0..MANY {
            rig.guest.submit(write(number));
        }
        while rig.pass().again {}
        let held = control.held().len();
        assert!((held as u64) < MANY, "{held} at once: no buffer is missing");
        assert!(!rig.sees_something(), "the device has not answered");
        assert!(!rig.rest());
        control.hold(&[]);
        control.release_all();
        assert!(rig.sees_something());
        while rig.guest.in_flight() > 0 {
            rig.pass();
            while rig.guest.reap() {}
        }
    }

    #[test]
    fn a_stopped_queue_leaves_no_hint_that_kicks_are_not_wanted() {
        let (mut rig, _medium) = rig();
        rig.guest.device_side().0.set_event_idx(false);
        rig.guest.submit(write(0));
        rig.pass();
        assert!(rig.guest.is_hushed(), "a busy worker wants no kicks");
        rig.stop();
        assert!(
            !rig.guest.is_hushed(),
            "who serves the ring next may wait for one"
        );
    }
}
