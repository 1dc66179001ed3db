//! Block device (virtio 1.4, 5.2): the device's clauses, and those of the legacy interface.

use crate::table::Force::{Must, Shall, Should};
use crate::table::Proof::{FrontEnd, NotLegacy, NotOffered, Tests};
use crate::table::{Clause, clause};

const LAYOUT: &str = "5.2.4.1";
const INIT: &str = "5.2.5.2";
const LEGACY_INIT: &str = "5.2.5.3";
const OPERATION: &str = "5.2.6.2";
const LEGACY_OPERATION: &str = "5.2.6.3";
const LEGACY_FRAMING: &str = "5.2.6.4";

const OFFERS: &[&str] = &[
    "protocol::a_zoned_disk_offers_what_it_implements",
    "protocol::a_plain_disk_offers_discard_and_no_zones",
    "conformance::every_disk_offers_exactly_what_its_kind_may",
];
const GEOMETRY: &[&str] = &[
    "protocol::the_configuration_says_the_geometry",
    "lib::the_config_space_is_96_bytes_and_answers_any_range",
];
const TRANSITIONS: &[&str] = &[
    "zones::every_transition_of_the_state_machine",
    "zone_machine::the_table_agrees_with_the_model",
    "lib::impossible_transitions_are_refused_and_change_nothing",
];
const MANAGEMENT_TARGETS: &[&str] = &[
    "zones::management_needs_the_start_of_a_sequential_zone",
    "lib::zone_management_names_the_start_of_a_sequential_zone",
];
const RESOURCES: &[&str] = &[
    "zones::explicitly_opened_zones_hold_their_slots",
    "zones::active_zones_are_limited_too",
    "zones::where_both_limits_are_reached_the_active_one_is_named",
];
const STABLE: &[&str] = &[
    "kill::kill_under_load_without_write_cache",
    "lost_cache::gcm",
    "lost_cache::gcm_without_write_cache",
    "crash::exhaustive_gcm",
];
const NO_ZONES: &[&str] = &[
    "lib::a_zoned_disk_does_nothing_for_a_driver_that_knows_no_zones",
    "block::zone_requests_of_a_plain_disk_are_unsupported",
    "conformance::zone_requests_without_the_feature_are_unsupported",
];
const CONFIG_STAYS: &[&str] = &[
    "protocol::nothing_but_the_cache_switch_can_be_written",
    "conformance::the_configuration_does_not_change_under_load",
];
const READ_ONLY: &[&str] = &[
    "block::a_read_only_disk_does_not_change",
    "zones::a_read_only_disk_keeps_its_zones",
    "lib::a_read_only_disk_changes_nothing",
];
const RANGE_FLAGS: &[&str] = &[
    "block::range_flags_and_bounds_are_checked",
    "hostile::requests_that_break_the_rules_get_their_status_on_a_plain_disk",
];
const APPEND_BOUNDS: &[&str] = &[
    "append::appends_have_bounds",
    "lib::appends_name_a_sequential_zone_and_keep_to_the_limit",
];
const UNWRITTEN: &[&str] = &[
    "zones::reads_see_data_and_zeroes",
    "zones::finish_leaves_the_rest_unwritten",
];
const SECURE_ERASE: (u32, &str) = (16, "SECURE_ERASE");
const LIFETIME: (u32, &str) = (15, "LIFETIME");

/// Device clauses, 5.2.5.2 and 5.2.6.2.
pub(crate) const DEVICE: &[Clause] = &[
    clause(
        "B01",
        INIT,
        Should,
        "FLUSH is always offered",
        Tests(OFFERS),
    ),
    clause(
        "B02",
        INIT,
        Must,
        "FLUSH is offered wherever CONFIG_WCE is",
        Tests(OFFERS),
    ),
    clause(
        "B03",
        INIT,
        Must,
        "CONFIG_WCE without FLUSH: the cache starts off",
        Tests(&["protocol::without_flush_the_cache_starts_as_writethrough"]),
    ),
    clause(
        "B04",
        INIT,
        Must,
        "unused0 and unused1 are zero",
        Tests(&[
            "protocol::the_configuration_says_the_geometry",
            "conformance::what_the_configuration_does_not_use_is_zero",
        ]),
    ),
    clause(
        "B05",
        INIT,
        Should,
        "a disk without zones does not offer ZONED",
        Tests(OFFERS),
    ),
    clause(
        "B06",
        INIT,
        Must,
        "a legacy device does not offer ZONED",
        NotLegacy,
    ),
    clause(
        "B07",
        INIT,
        Should,
        "ZONED not taken, not host-managed: goes on with zoned fields of zero",
        Tests(&[
            "lib::a_plain_disk_offers_ranges_and_no_zones",
            "conformance::what_the_configuration_does_not_use_is_zero",
        ]),
    ),
    clause(
        "B08",
        INIT,
        Must,
        "ZONED not taken, host-managed: the negotiation fails",
        Tests(&["protocol::a_host_managed_disk_needs_a_front_end_that_takes_zones"]),
    ),
    clause(
        "B09",
        INIT,
        Must,
        "the model says what the disk is",
        Tests(GEOMETRY),
    ),
    clause(
        "B10",
        INIT,
        Must,
        "zone_sectors is the size of a zone",
        Tests(GEOMETRY),
    ),
    clause(
        "B11",
        INIT,
        Must,
        "max_open_zones is the limit that holds",
        Tests(RESOURCES),
    ),
    clause(
        "B12",
        INIT,
        Must,
        "max_active_zones is the limit that holds",
        Tests(RESOURCES),
    ),
    clause(
        "B13",
        INIT,
        Must,
        "max_append_sectors is the longest append",
        Tests(APPEND_BOUNDS),
    ),
    clause(
        "B14",
        INIT,
        Must,
        "max_append_sectors keeps to seg_max times size_max",
        NotOffered(1, "SIZE_MAX"),
    ),
    clause(
        "B15",
        INIT,
        Must,
        "write_granularity is the alignment of writes",
        Tests(GEOMETRY),
    ),
    clause(
        "B16",
        INIT,
        Must,
        "unused2 is zero",
        Tests(&["protocol::the_configuration_says_the_geometry"]),
    ),
    clause(
        "B17",
        OPERATION,
        Should,
        "a change of the capacity is notified: it never changes while served",
        Tests(CONFIG_STAYS),
    ),
    clause(
        "B18",
        OPERATION,
        Must,
        "RO offered: writes end with IOERR",
        Tests(READ_ONLY),
    ),
    clause(
        "B19",
        OPERATION,
        Must,
        "RO offered: nothing is written",
        Tests(READ_ONLY),
    ),
    clause(
        "B20",
        OPERATION,
        Must,
        "unknown range flags are UNSUPP",
        Tests(RANGE_FLAGS),
    ),
    clause(
        "B21",
        OPERATION,
        Must,
        "discard with unmap is UNSUPP",
        Tests(RANGE_FLAGS),
    ),
    clause(
        "B22",
        OPERATION,
        Must,
        "after WRITE_ZEROES reads return zeroes",
        Tests(&["block::write_zeroes_leaves_zeroes"]),
    ),
    clause(
        "B23",
        OPERATION,
        Should,
        "write_zeroes_may_unmap is clear where zeroes are written",
        Tests(&["lib::a_plain_disk_offers_ranges_and_no_zones"]),
    ),
    clause(
        "B24",
        OPERATION,
        Should,
        "a change of write_zeroes_may_unmap is notified: it never changes",
        Tests(CONFIG_STAYS),
    ),
    clause(
        "B25",
        OPERATION,
        Must,
        "stable writes are on storage before they are told",
        Tests(STABLE),
    ),
    clause(
        "B26",
        OPERATION,
        Should,
        "storage with lifetime metrics offers LIFETIME: files have none",
        NotOffered(LIFETIME.0, LIFETIME.1),
    ),
    clause(
        "B27",
        OPERATION,
        Must,
        "LIFETIME is not offered where it means nothing",
        NotOffered(LIFETIME.0, LIFETIME.1),
    ),
    clause(
        "B28",
        OPERATION,
        Must,
        "lifetime values are none of the reserved ones",
        NotOffered(LIFETIME.0, LIFETIME.1),
    ),
    clause(
        "B29",
        OPERATION,
        Must,
        "without ZONED the zone requests are UNSUPP",
        Tests(NO_ZONES),
    ),
    clause(
        "B30",
        OPERATION,
        Must,
        "management of a conventional zone is INVALID_CMD",
        Tests(MANAGEMENT_TARGETS),
    ),
    clause(
        "B31",
        OPERATION,
        Shall,
        "an append to another than a sequential zone is INVALID_CMD",
        Tests(APPEND_BOUNDS),
    ),
    clause(
        "B32",
        OPERATION,
        Must,
        "an impossible OPEN is INVALID_CMD",
        Tests(TRANSITIONS),
    ),
    clause(
        "B33",
        OPERATION,
        Must,
        "an OPEN without resources says which and changes nothing",
        Tests(RESOURCES),
    ),
    clause(
        "B34",
        OPERATION,
        Must,
        "an impossible CLOSE is INVALID_CMD",
        Tests(TRANSITIONS),
    ),
    clause(
        "B35",
        OPERATION,
        Must,
        "an impossible FINISH is INVALID_CMD and changes nothing",
        Tests(TRANSITIONS),
    ),
    clause(
        "B36",
        OPERATION,
        Must,
        "an impossible RESET is INVALID_CMD and changes nothing",
        Tests(&[
            "lib::impossible_transitions_are_refused_and_change_nothing",
            "zones::management_needs_the_start_of_a_sequential_zone",
        ]),
    ),
    clause(
        "B37",
        OPERATION,
        Must,
        "a write that would open a zone without resources says which",
        Tests(RESOURCES),
    ),
    clause(
        "B38",
        OPERATION,
        Shall,
        "an append past a zone's start is INVALID_CMD",
        Tests(APPEND_BOUNDS),
    ),
    clause(
        "B39",
        OPERATION,
        Shall,
        "a write over the capacity is INVALID_CMD",
        Tests(&[
            "append::appends_have_bounds",
            "zones::writes_go_to_the_write_pointer",
        ]),
    ),
    clause(
        "B40",
        OPERATION,
        Must,
        "an append returns the first sector of its data",
        Tests(&[
            "append::appends_from_many_queues_tile_the_zones",
            "lib::the_append_sector_comes_first_and_the_status_last_for_any_tail",
        ]),
    ),
    clause(
        "B41",
        OPERATION,
        Shall,
        "appends are UNSUPP where max_append_sectors is zero: no zoned disk says zero",
        Tests(&["conformance::every_zoned_disk_takes_appends"]),
    ),
    clause(
        "B42",
        OPERATION,
        Shall,
        "an append over the limit is INVALID_CMD",
        Tests(APPEND_BOUNDS),
    ),
    clause(
        "B43",
        OPERATION,
        Shall,
        "a request over a zone's end is INVALID_CMD",
        Tests(&[
            "lib::only_conventional_zones_may_be_crossed",
            "zones::writes_go_to_the_write_pointer",
            "conformance::reads_of_two_sequential_zones_are_invalid",
        ]),
    ),
    clause(
        "B44",
        OPERATION,
        Shall,
        "a write elsewhere than at the write pointer is UNALIGNED_WP",
        Tests(&["zones::writes_go_to_the_write_pointer"]),
    ),
    clause(
        "B45",
        OPERATION,
        Shall,
        "writes to a read-only zone are INVALID_CMD",
        Tests(&["lib::three_failures_at_one_place_make_a_zone_read_only"]),
    ),
    clause(
        "B46",
        OPERATION,
        Shall,
        "everything to an offline zone is INVALID_CMD",
        Tests(&["lib::a_zone_without_a_record_is_offline"]),
    ),
    clause(
        "B47",
        OPERATION,
        Must,
        "past the write pointer is unwritten",
        Tests(UNWRITTEN),
    ),
    clause(
        "B48",
        OPERATION,
        Must,
        "unwritten data reads as a pattern: zeroes",
        Tests(UNWRITTEN),
    ),
    clause(
        "B49",
        OPERATION,
        Must,
        "SECURE_ERASE and zones: aligned to zones",
        NotOffered(SECURE_ERASE.0, SECURE_ERASE.1),
    ),
    clause(
        "B50",
        OPERATION,
        Must,
        "SECURE_ERASE and zones: whole zones",
        NotOffered(SECURE_ERASE.0, SECURE_ERASE.1),
    ),
    clause(
        "B51",
        OPERATION,
        Must,
        "SECURE_ERASE works as RESET on zones",
        NotOffered(SECURE_ERASE.0, SECURE_ERASE.1),
    ),
];

/// Clauses of the legacy interface that speak of the device.
pub(crate) const LEGACY: &[Clause] = &[
    clause(
        "L01",
        LAYOUT,
        Must,
        "the configuration in the guest's endianness",
        NotLegacy,
    ),
    clause(
        "L02",
        LEGACY_INIT,
        Must,
        "other negotiation without FEATURES_OK",
        NotLegacy,
    ),
    clause(
        "L03",
        LEGACY_INIT,
        Must,
        "no change of the cache by status bits",
        NotLegacy,
    ),
    clause(
        "L04",
        LEGACY_INIT,
        Must,
        "no change of the cache by feature bits",
        NotLegacy,
    ),
    clause(
        "L05",
        LEGACY_OPERATION,
        Must,
        "requests in the guest's endianness",
        NotLegacy,
    ),
    clause(
        "L06",
        LEGACY_OPERATION,
        Should,
        "used lengths mean nothing",
        NotLegacy,
    ),
    clause(
        "L07",
        LEGACY_OPERATION,
        Should,
        "a barrier waits for what came before",
        NotOffered(0, "BARRIER"),
    ),
    clause(
        "L08",
        LEGACY_OPERATION,
        Should,
        "a barrier holds what comes after",
        NotOffered(0, "BARRIER"),
    ),
    clause(
        "L09",
        LEGACY_OPERATION,
        Must,
        "a SCSI command is in one buffer",
        NotOffered(7, "SCSI"),
    ),
    clause(
        "L10",
        LEGACY_OPERATION,
        Should,
        "the SCSI data length is ignored",
        NotOffered(7, "SCSI"),
    ),
    clause(
        "L11",
        LEGACY_FRAMING,
        Must,
        "a header descriptor and a status descriptor",
        NotLegacy,
    ),
    clause(
        "L12",
        LEGACY_FRAMING,
        Must,
        "SCSI sense in one descriptor",
        NotOffered(7, "SCSI"),
    ),
    clause(
        "L13",
        LEGACY_FRAMING,
        Must,
        "SCSI results in one descriptor",
        NotOffered(7, "SCSI"),
    ),
];

/// General clauses for devices (2.1 to 2.6, 3.4, 6) as they meet a block device behind vhost-user.
pub(crate) const GENERAL: &[Clause] = &[
    clause(
        "G01",
        "2.1.2",
        Must,
        "no buffer is used before DRIVER_OK: a ring is served once it is enabled",
        Tests(&["protocol::a_disabled_queue_waits"]),
    ),
    clause(
        "G02",
        "2.1.2",
        Should,
        "DEVICE_NEEDS_RESET is set in an error state",
        FrontEnd("the status field is the front-end's; a broken ring stops its queue"),
    ),
    clause(
        "G03",
        "2.1.2",
        Must,
        "DEVICE_NEEDS_RESET is notified",
        FrontEnd("the status field is the front-end's"),
    ),
    clause(
        "G04",
        "2.2.2",
        Must,
        "a feature comes with what it requires",
        Tests(OFFERS),
    ),
    clause(
        "G05",
        "2.2.2",
        Should,
        "every valid subset of the features is taken",
        Tests(&["protocol::any_subset_of_the_features_works"]),
    ),
    clause(
        "G06",
        "2.2.2",
        Must,
        "what is no valid subset is refused",
        Tests(&[
            "protocol::a_bit_that_was_not_offered_is_not_taken",
            "hostile::messages_that_break_the_rules_end_the_session_at_most",
        ]),
    ),
    clause(
        "G07",
        "2.2.2",
        Must,
        "nothing is offered that does not work",
        Tests(OFFERS),
    ),
    clause(
        "G08",
        "2.2.2",
        Should,
        "the same features are taken again after a reset",
        Tests(&["conformance::the_same_features_are_taken_again_after_a_reset"]),
    ),
    clause(
        "G09",
        "2.4.1",
        Must,
        "a reset puts the status to zero",
        FrontEnd("the status field is the front-end's"),
    ),
    clause(
        "G10",
        "2.4.1",
        Must,
        "after a reset no queue is touched and nothing notified",
        Tests(&["conformance::a_reset_device_leaves_its_rings_alone"]),
    ),
    clause(
        "G11",
        "2.5.2",
        Must,
        "the configuration can be read before the features are chosen",
        Tests(&["protocol::the_configuration_says_the_geometry"]),
    ),
    clause(
        "G12",
        "2.6.1",
        Must,
        "a queue that was reset executes nothing",
        NotOffered(40, "RING_RESET"),
    ),
    clause(
        "G13",
        "2.6.1",
        Must,
        "a queue that was reset starts from nothing",
        NotOffered(40, "RING_RESET"),
    ),
    clause(
        "G14",
        "2.6.1",
        Must,
        "a queue enabled anew has its new settings",
        NotOffered(40, "RING_RESET"),
    ),
    clause(
        "G15",
        "3.4",
        Must,
        "SUSPEND waits for the initialisation",
        NotOffered(43, "SUSPEND"),
    ),
    clause(
        "G16",
        "3.4",
        Should,
        "suspended: the configuration is not written",
        NotOffered(43, "SUSPEND"),
    ),
    clause(
        "G17",
        "3.4",
        Must,
        "suspended: no queue is touched",
        NotOffered(43, "SUSPEND"),
    ),
    clause(
        "G18",
        "3.4",
        Must,
        "suspended: no configuration notice",
        NotOffered(43, "SUSPEND"),
    ),
    clause(
        "G19",
        "3.4",
        Must,
        "suspended: the notice comes on resumption",
        NotOffered(43, "SUSPEND"),
    ),
    clause(
        "G20",
        "3.4",
        Must,
        "it suspends or says that it needs a reset",
        NotOffered(43, "SUSPEND"),
    ),
    clause(
        "G21",
        "3.4",
        Must,
        "it resumes or says that it needs a reset",
        NotOffered(43, "SUSPEND"),
    ),
    clause(
        "G22",
        "3.4",
        Should,
        "it drains before it is suspended",
        NotOffered(43, "SUSPEND"),
    ),
    clause("G23", "6.2", Must, "VERSION_1 is offered", Tests(OFFERS)),
    clause(
        "G24",
        "6.2",
        Should,
        "ACCESS_PLATFORM where addresses are translated: guest-physical ones are not",
        NotOffered(33, "ACCESS_PLATFORM"),
    ),
    clause(
        "G25",
        "6.2",
        Must,
        "IN_ORDER: buffers are used in order",
        NotOffered(35, "IN_ORDER"),
    ),
    clause(
        "G26",
        "6.2",
        Should,
        "SR_IOV by those who have it",
        NotOffered(37, "SR_IOV"),
    ),
    clause(
        "G27",
        "6.2",
        Must,
        "SR_IOV by nobody else",
        NotOffered(37, "SR_IOV"),
    ),
];
