//! How a queue goes from its worker to the front-end and back: after GET_VRING_BASE and SET_MEM_TABLE, and
//! when a front-end left, nobody touches the memory that was served, everything taken is answered, and
//! nothing that is offered afterwards is slept over.

use crate::explore;

/// The device's modules, with a mistake or without, and the cases for them.
macro_rules! device {
    ($name:ident, $kind:literal) => {
        #[allow(
            dead_code,
            unused_imports,
            reason = "not all that the sources can do is done here"
        )]
        mod $name {
            mod handle {
                include!(concat!(env!("OUT_DIR"), "/", $kind, "/handle.rs"));
            }
            mod ring {
                include!(concat!(env!("OUT_DIR"), "/", $kind, "/ring.rs"));
            }
            mod worker {
                include!(concat!(env!("OUT_DIR"), "/", $kind, "/worker.rs"));
            }
            mod state {
                include!("state.rs");
                include!(concat!(env!("OUT_DIR"), "/", $kind, "/state.rs"));
            }
            mod handler {
                include!("handler.rs");
                include!(concat!(env!("OUT_DIR"), "/", $kind, "/handler.rs"));
            }
            pub(super) mod cases {
                include!("cases.rs");
            }
            use crate::world::{memory, options, refusal, sys, tracked};
        }
    };
}

device!(right, "right");
device!(silent_start, "silent_start");
device!(undrained, "undrained");
device!(no_knock, "no_knock");
device!(still_served, "still_served");
device!(unseen_pause, "unseen_pause");
device!(no_pause, "no_pause");
device!(no_go, "no_go");

#[test]
fn after_get_vring_base_nobody_touches_guest_memory() {
    explore(right::cases::get_vring_base);
}

#[test]
fn a_queue_that_was_stopped_goes_on_where_it_was() {
    explore(right::cases::stop_and_start);
}

#[test]
fn after_set_mem_table_nobody_touches_the_old_memory() {
    explore(right::cases::set_mem_table);
}

#[test]
fn when_a_front_end_left_nobody_touches_its_memory() {
    explore(right::cases::leave);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_worker_that_starts_without_saying_so_is_found() {
    explore(silent_start::cases::get_vring_base);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_worker_that_rests_with_requests_in_flight_is_found() {
    explore(undrained::cases::get_vring_base);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_worker_that_is_not_woken_to_rest_is_found() {
    explore(no_knock::cases::get_vring_base);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_ring_that_is_served_while_it_is_stopped_is_found() {
    explore(still_served::cases::get_vring_base);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_worker_that_starts_into_a_pause_is_found() {
    explore(unseen_pause::cases::set_mem_table);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn memory_that_changes_without_a_pause_is_found() {
    explore(no_pause::cases::set_mem_table);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_queue_that_is_not_woken_in_its_new_memory_is_found() {
    explore(no_go::cases::set_mem_table);
}
