//! What a killed daemon leaves in a front-end's memory is a prefix of what it stored: here every prefix of
//! every short history of a queue is taken back, and what comes of that taking back being killed too.
//! Exactly what the guest has not seen answered is begun again or still in the ring, in the order in which
//! it was taken, and of each it is known what it was about to change.

/// A queue's life, of which everything but the code that is taken in is this model.
macro_rules! lives {
    ($name:ident, $source:literal) => {
        #[allow(
            dead_code,
            unused_imports,
            reason = "not all that the sources can do is done here"
        )]
        mod $name {
            include!(concat!(env!("OUT_DIR"), "/", $source));

            pub(super) mod lives {
                include!("lives.rs");
            }
        }
    };
}

lives!(right, "inflight.rs");
lives!(flag_first, "inflight_flag_first.rs");
lives!(counter_first, "inflight_counter_first.rs");
lives!(index_first, "inflight_index_first.rs");
lives!(index_before_batch, "inflight_index_before_batch.rs");

#[test]
fn whatever_was_stored_before_a_kill_is_taken_back_right() {
    let (histories, kills) = right::lives::all();
    println!("{histories} histories, {kills} kills");
    assert!(histories > 1_000 && kills > 10_000);
}

#[test]
#[should_panic(expected = "known")]
fn a_request_in_flight_before_it_has_its_number_is_found() {
    flag_first::lives::all();
}

#[test]
#[should_panic(expected = "known")]
fn an_intent_that_counts_before_it_is_written_is_found() {
    counter_first::lives::all();
}

#[test]
#[should_panic(expected = "begun again")]
fn answers_that_count_as_seen_before_they_are_out_of_flight_are_found() {
    index_first::lives::all();
}

#[test]
#[should_panic(expected = "begun again")]
fn the_same_while_taking_back_is_found() {
    index_before_batch::lives::all();
}
