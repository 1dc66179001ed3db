//! Split virtqueues (virtio 1.4, 2.7): every MUST, and the device's SHOULDs; packed ones (2.8) are not offered.

use crate::table::Force::{Must, Should};
use crate::table::Proof::{Driver, DriverAlone, NotLegacy, NotOffered, Tests};
use crate::table::{Clause, clause};

const BAD_RINGS: &[&str] = &["hostile::rings_that_break_the_rules_stop_their_queue_at_most"];
const BAD_CHAINS: &[&str] = &["hostile::chains_that_break_the_rules_are_refused_and_harmless"];
const FRAMINGS: &[&str] = &[
    "block::a_header_may_be_split_at_every_byte",
    "block::data_may_be_split_anywhere",
    "append::append_data_may_be_scattered",
];
const EXACT_WRITES: &[&str] = &["conformance::nothing_is_written_but_what_is_the_devices"];
const NOTICES_BY_INDEX: &[&str] =
    &["conformance::with_event_indices_the_driver_hears_when_it_asked_to"];
const NOTICES_BY_FLAG: &[&str] = &["conformance::without_event_indices_the_flags_decide"];

/// Clauses that bind the device.
pub(crate) const DEVICE: &[Clause] = &[
    clause(
        "R01",
        "2.7.4.1",
        Must,
        "no framing is assumed",
        Tests(FRAMINGS),
    ),
    clause(
        "R02",
        "2.7.5.1",
        Must,
        "readable buffers are not written",
        Tests(EXACT_WRITES),
    ),
    clause(
        "R03",
        "2.7.5.1",
        Should,
        "writable buffers are not read",
        Tests(&["read_once::what_the_device_writes_it_does_not_read"]),
    ),
    clause(
        "R04",
        "2.7.5.1",
        Must,
        "descriptors are not written",
        Tests(EXACT_WRITES),
    ),
    clause(
        "R05",
        "2.7.5.3.2",
        Must,
        "the write flag of an indirect descriptor means nothing",
        Tests(&["conformance::the_write_flag_of_an_indirect_descriptor_means_nothing"]),
    ),
    clause(
        "R06",
        "2.7.5.3.2",
        Must,
        "a chain may end in one indirect descriptor",
        Tests(&["conformance::a_chain_may_end_in_an_indirect_table"]),
    ),
    clause(
        "R07",
        "2.7.7.2",
        Must,
        "without EVENT_IDX used_event means nothing",
        Tests(NOTICES_BY_FLAG),
    ),
    clause(
        "R08",
        "2.7.7.2",
        Should,
        "without EVENT_IDX, flag 1: no notice",
        Tests(NOTICES_BY_FLAG),
    ),
    clause(
        "R09",
        "2.7.7.2",
        Must,
        "without EVENT_IDX, flag 0: a notice",
        Tests(NOTICES_BY_FLAG),
    ),
    clause(
        "R10",
        "2.7.7.2",
        Must,
        "with EVENT_IDX the flag means nothing",
        Tests(NOTICES_BY_INDEX),
    ),
    clause(
        "R11",
        "2.7.7.2",
        Must,
        "with EVENT_IDX a notice at used_event",
        Tests(NOTICES_BY_INDEX),
    ),
    clause(
        "R12",
        "2.7.7.2",
        Should,
        "with EVENT_IDX no other notice",
        Tests(NOTICES_BY_INDEX),
    ),
    clause(
        "R13",
        "2.7.8.2",
        Must,
        "the length is there before the index",
        Tests(&["conformance::what_the_index_shows_is_complete"]),
    ),
    clause(
        "R14",
        "2.7.8.2",
        Must,
        "so much was written before the index",
        Tests(&[
            "conformance::what_the_index_shows_is_complete",
            "conformance::the_used_length_never_claims_what_was_not_written",
        ]),
    ),
    clause(
        "R15",
        "2.7.10.2",
        Must,
        "without EVENT_IDX the flags are 0 or 1",
        Tests(&["conformance::the_used_flags_hold_one_bit_at_most"]),
    ),
    clause(
        "R16",
        "2.7.10.2",
        Must,
        "with EVENT_IDX the flags are 0",
        Tests(&["conformance::the_used_flags_hold_one_bit_at_most"]),
    ),
    clause(
        "R17",
        "2.7.10.2",
        Must,
        "spurious kicks are harmless",
        Tests(BAD_RINGS),
    ),
];

/// The other MUSTs of 2.7: of drivers, and of the legacy interface.
pub(crate) const OTHERS: &[Clause] = &[
    clause(
        "D01",
        "2.7.1",
        Must,
        "each part of a ring is aligned",
        Driver(BAD_RINGS),
    ),
    clause(
        "D02",
        "2.7.2",
        Must,
        "legacy: the driver asks for the queue size",
        NotLegacy,
    ),
    clause("D03", "2.7.2", Must, "legacy: so many bytes", NotLegacy),
    clause("D04", "2.7.2", Must, "legacy: this layout", NotLegacy),
    clause(
        "D05",
        "2.7.3",
        Must,
        "legacy: the guest's endianness",
        NotLegacy,
    ),
    clause(
        "D06",
        "2.7.4.2",
        Must,
        "writable descriptors follow readable ones",
        Driver(BAD_CHAINS),
    ),
    clause(
        "D07",
        "2.7.5.2",
        Must,
        "no chain over 2^32 bytes, so no loops",
        Driver(BAD_CHAINS),
    ),
    clause(
        "D08",
        "2.7.5.2",
        Must,
        "IN_ORDER: the table is used in order",
        NotOffered(35, "IN_ORDER"),
    ),
    clause(
        "D09",
        "2.7.5.3.1",
        Must,
        "indirect tables only where negotiated: they are taken all the same",
        DriverAlone("a table is checked alike, negotiated or not"),
    ),
    clause(
        "D10",
        "2.7.5.3.1",
        Must,
        "no table in a table",
        Driver(BAD_CHAINS),
    ),
    clause(
        "D11",
        "2.7.5.3.1",
        Must,
        "no chain longer than the queue",
        Driver(BAD_CHAINS),
    ),
    clause(
        "D12",
        "2.7.5.3.1",
        Must,
        "not INDIRECT and NEXT at once",
        Driver(BAD_CHAINS),
    ),
    clause(
        "D13",
        "2.7.5.3.1",
        Must,
        "IN_ORDER: tables in sequence",
        NotOffered(35, "IN_ORDER"),
    ),
    clause(
        "D14",
        "2.7.6.1",
        Must,
        "the available index does not fall",
        Driver(BAD_RINGS),
    ),
    clause(
        "D15",
        "2.7.7.1",
        Must,
        "without EVENT_IDX the flags are 0 or 1",
        Driver(&["conformance::without_event_indices_the_flags_decide"]),
    ),
    clause(
        "D16",
        "2.7.7.1",
        Must,
        "with EVENT_IDX the flags are 0",
        Driver(&["conformance::with_event_indices_the_driver_hears_when_it_asked_to"]),
    ),
    clause(
        "D17",
        "2.7.7.1",
        Must,
        "the driver bears spurious notices",
        DriverAlone("nothing of the device depends on what a driver does with a notice"),
    ),
    clause(
        "D18",
        "2.7.8.3",
        Must,
        "the driver trusts no byte past the used length",
        DriverAlone("it is the driver's memory"),
    ),
    clause(
        "D19",
        "2.7.10.1",
        Must,
        "the used flags begin as 0",
        Driver(&["conformance::the_used_flags_hold_one_bit_at_most"]),
    ),
    clause(
        "D20",
        "2.7.10.1",
        Must,
        "without EVENT_IDX avail_event means nothing",
        DriverAlone("it is a hint to the driver"),
    ),
    clause(
        "D21",
        "2.7.10.1",
        Must,
        "without EVENT_IDX, flag 0: a kick",
        DriverAlone("chains without a kick wait for the next one"),
    ),
    clause(
        "D22",
        "2.7.10.1",
        Must,
        "with EVENT_IDX the used flag means nothing",
        DriverAlone("it is a hint to the driver"),
    ),
    clause(
        "D23",
        "2.7.10.1",
        Must,
        "with EVENT_IDX a kick at avail_event",
        DriverAlone("chains without a kick wait for the next one"),
    ),
    clause(
        "D24",
        "2.7.13.3.1",
        Must,
        "a barrier before the index",
        Driver(&["read_once::a_racing_guest_gets_nothing_out_of_step"]),
    ),
    clause(
        "D25",
        "2.7.13.4.1",
        Must,
        "a barrier before the flags are read",
        DriverAlone("a kick that stays away delays the driver's own request"),
    ),
];

/// MUSTs of packed virtqueues (2.8), which need RING_PACKED.
pub(crate) const PACKED_CLAUSES: usize = 22;
/// The bit of RING_PACKED.
pub(crate) const RING_PACKED: u32 = 34;
