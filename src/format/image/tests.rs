//! Images on the in-memory twin: made, damaged, cut off and opened again.

use super::*;
use crate::format::{Argon2Cost, NewProtector, OpenState};
use crate::geometry::{GeometrySpec, Model};
use crate::secret::KeyMaterial;
use crate::store::mem::{Fault, Kind, MemMedium};

fn geometry(model: Model) -> Geometry {
    GeometrySpec {
        model,
        block_size: 4096,
        disk_size: 8 << 20,
        zone_size: 64 << 10,
        zone_capacity: 64 << 10,
        conventional: 3,
        max_open: 0,
        max_active: 0,
        max_append: 4096,
    }
    .validate()
    .unwrap()
}

fn key(fill: u8) -> Credential {
    Credential::KeyFile(KeyMaterial::new(vec![fill; 32]))
}

fn phrase(text: &str) -> Credential {
    Credential::Passphrase(KeyMaterial::new(text.as_bytes().to_vec()))
}

fn seal(volume_key: &VolumeKey, uuid: &Uuid, slot: u32, credential: &Credential) -> Protector {
    let new = NewProtector {
        credential,
        cost: Argon2Cost {
            memory_kib: 8,
            passes: 1,
            lanes: 1,
        },
        label: "",
        created: 0,
    };
    Protector::seal(volume_key, uuid, slot, &new).unwrap()
}

fn make(
    medium: &MemMedium,
    geometry: &Geometry,
    credential: &Credential,
) -> Result<Layout, ImageError> {
    let uuid = Uuid::new_v4();
    let volume_key = VolumeKey::random().unwrap();
    create(
        medium,
        &CreateSpec {
            geometry,
            cipher: Cipher::Aes256Xts,
            uuid,
            created: 1,
            volume_key: &volume_key,
            protector: &seal(&volume_key, &uuid, 0, credential),
        },
    )
}

fn medium_for(geometry: &Geometry) -> MemMedium {
    MemMedium::new(Layout::new(geometry, 0).unwrap().image_len())
}

fn zoned() -> MemMedium {
    let geometry = geometry(Model::HostManaged);
    let medium = medium_for(&geometry);
    make(&medium, &geometry, &key(1)).unwrap();
    medium
}

fn records(medium: &MemMedium, unlocked: &Unlocked) -> Vec<LoadedRecord> {
    let key = unlocked.record_key().unwrap();
    load_records(medium, &unlocked.layout, unlocked.geometry(), &key).unwrap()
}

#[test]
fn a_new_image_unlocks_and_every_zone_is_fresh() {
    for model in [Model::HostManaged, Model::Plain] {
        let geometry = geometry(model);
        let medium = medium_for(&geometry);
        make(&medium, &geometry, &phrase("pass")).unwrap();
        let unlocked = unlock(&medium, &phrase("pass")).unwrap();
        assert_eq!(unlocked.geometry(), &geometry);
        assert_eq!(unlocked.header.state, OpenState::Clean);
        assert_eq!((unlocked.slot, unlocked.damaged_header), (0, None));
        let mut salts = Vec::new();
        for (zone, loaded) in geometry.all_zones().zip(records(&medium, &unlocked)) {
            assert!(loaded.is_sound());
            let record = loaded.newest.unwrap().record;
            assert_eq!(record, fresh_record(&geometry, zone, record.salt));
            salts.push(record.salt.0);
        }
        assert_eq!(salts.len(), 128);
        salts.sort_unstable();
        salts.dedup();
        assert_eq!(salts.len(), 128, "salts repeat");
    }
}

#[test]
fn no_key_but_the_right_one_opens() {
    let medium = zoned();
    for wrong in [key(2), phrase("pass")] {
        assert!(matches!(unlock(&medium, &wrong), Err(ImageError::WrongKey)));
    }
    let unlocked = unlock(&medium, &key(1)).unwrap();
    let uuid = *unlocked.header.uuid();
    let second = seal(&unlocked.volume_key, &uuid, 5, &phrase("pass"));
    write_protector(&medium, 5, Some(&second)).unwrap();
    assert_eq!(unlock(&medium, &phrase("pass")).unwrap().slot, 5);
    write_protector(&medium, 0, None).unwrap();
    assert!(matches!(
        unlock(&medium, &key(1)),
        Err(ImageError::WrongKey)
    ));
    assert!(matches!(
        write_protector(&medium, 8, None),
        Err(ImageError::NoSuchSlot(8))
    ));
}

#[test]
fn a_damaged_slot_does_not_keep_the_others_from_opening() {
    let medium = zoned();
    let unlocked = unlock(&medium, &key(1)).unwrap();
    let second = seal(&unlocked.volume_key, unlocked.header.uuid(), 1, &key(2));
    write_protector(&medium, 1, Some(&second)).unwrap();
    medium
        .control()
        .overwrite(Layout::protector_offset(0) + 50, b"x");
    assert_eq!(read_protectors(&medium).unwrap()[0], Slot::Damaged);
    assert_eq!(unlock(&medium, &key(2)).unwrap().slot, 1);
}

#[test]
fn header_writes_alternate_and_survive_any_cut() {
    let medium = zoned();
    let mut unlocked = unlock(&medium, &key(1)).unwrap();
    let header_key = unlocked.header_key().unwrap();
    assert_eq!(unlocked.header.sequence(), 1);
    for round in 2..8 {
        unlocked.header.epoch = Epoch(round);
        // A failed write, a failed sync: the header on disk is the old one or the new one.
        for (kind, fault) in [
            (Kind::MetadataWrite, Fault::Fail(libc::EIO)),
            (Kind::MetadataWrite, Fault::Tear(libc::EIO, 512)),
            (Kind::Sync, Fault::Fail(libc::EIO)),
        ] {
            medium.control().fail_nth(kind, 1, fault);
            let before = unlocked.header.clone();
            assert!(write_header(&medium, &header_key, &mut unlocked.header).is_err());
            assert_eq!(unlocked.header, before);
            for seed in 0..20 {
                let cut = medium.control().crash(seed);
                let found = unlock(&cut, &key(1)).unwrap().header;
                assert!(
                    [round - 1, round].contains(&found.sequence()),
                    "seed {seed}"
                );
            }
        }
        write_header(&medium, &header_key, &mut unlocked.header).unwrap();
        let found = read_header(&medium.control().crash(round)).unwrap();
        assert_eq!((found.raw.sequence(), found.damaged), (round, None));
        assert_eq!(unlock(&medium, &key(1)).unwrap().header, unlocked.header);
    }
}

#[test]
fn a_header_whose_twin_is_lost_is_not_trusted_to_be_clean() {
    for copy in HeaderCopy::BOTH {
        let medium = zoned();
        let offset = Layout::header_offset(copy);
        medium.control().overwrite(offset + 100, b"rot");
        let unlocked = unlock(&medium, &key(1)).unwrap();
        assert_eq!(unlocked.damaged_header, Some(copy));
        assert_eq!(unlocked.header.state, OpenState::Open);
        // Two writes, and both copies are sound again.
        let header_key = unlocked.header_key().unwrap();
        let mut header = unlocked.header;
        for _ in 0..2 {
            write_header(&medium, &header_key, &mut header).unwrap();
        }
        assert_eq!(read_header(&medium).unwrap().damaged, None);
    }
}

#[test]
fn what_is_no_image_is_told_from_a_damaged_one() {
    let blank = MemMedium::new(1 << 20);
    let not_an_image = |found| matches!(found, Err(ImageError::Header(HeaderError::NotAnImage)));
    assert!(not_an_image(unlock(&blank, &key(1))));
    assert!(not_an_image(unlock(&MemMedium::new(0), &key(1))));
    assert!(not_an_image(unlock(&MemMedium::new(4096), &key(1))));
    let medium = zoned();
    for copy in HeaderCopy::BOTH {
        let offset = Layout::header_offset(copy);
        medium.control().overwrite(offset + 100, b"rot");
    }
    assert!(matches!(
        unlock(&medium, &key(1)),
        Err(ImageError::Header(HeaderError::Rot))
    ));
}

#[test]
fn a_copy_in_the_wrong_place_is_damage() {
    let medium = zoned();
    let newer = medium
        .control()
        .peek(Layout::header_offset(HeaderCopy::B), PAGE);
    let offset = Layout::header_offset(HeaderCopy::A);
    medium.control().overwrite(offset, &newer);
    assert_eq!(read_header(&medium).unwrap().damaged, Some(HeaderCopy::A));
}

#[test]
fn a_header_of_another_volume_is_a_forgery() {
    let (medium, other) = (zoned(), zoned());
    let offset = Layout::header_offset(HeaderCopy::B);
    // Their header under our protectors: no key of ours opens their uuid.
    medium
        .control()
        .overwrite(offset, &other.control().peek(offset, PAGE));
    assert!(matches!(
        unlock(&medium, &key(1)),
        Err(ImageError::WrongKey)
    ));
}

#[test]
fn truncated_images_are_refused() {
    let medium = zoned();
    let len = medium.size().unwrap();
    let whole = medium.control().peek(0, usize::try_from(len).unwrap());
    for cut in [len - 1, len / 2, 70_000, 65_536] {
        let short = MemMedium::new(cut);
        short
            .control()
            .overwrite(0, &whole[..usize::try_from(cut).unwrap()]);
        assert!(
            matches!(
                unlock(&short, &key(1)),
                Err(ImageError::Truncated { have, .. }) if have == cut
            ),
            "{cut}"
        );
    }
    let tight = MemMedium::new(len - 1);
    let made = make(&tight, &geometry(Model::HostManaged), &key(1));
    assert!(matches!(made, Err(ImageError::Truncated { .. })));
    assert_eq!(tight.control().counts().metadata_writes, 0);
}

#[test]
fn the_newer_sound_record_holds() {
    let medium = zoned();
    let unlocked = unlock(&medium, &key(1)).unwrap();
    let key = unlocked.record_key().unwrap();
    let zone = ZoneIndex(9);
    let mut record = records(&medium, &unlocked)[9].newest.unwrap().record;
    record.written = Blocks(4);
    record.state = ZoneState::Closed;
    let order = RecordWrite {
        record,
        sequence: 1,
        copy: RecordCopy::B,
    };
    write_record(&medium, &unlocked.layout, &key, zone, &order).unwrap();
    let found = records(&medium, &unlocked)[9];
    assert!(found.is_sound());
    assert_eq!(
        found.newest,
        Some(Loaded {
            record,
            sequence: 1,
            copy: RecordCopy::B,
            mirrored: false,
            proven: Blocks(0),
        })
    );
    // The newer copy rots: the older one holds. Both rot: the zone is lost, and only that one.
    let spoil = |copy| {
        let offset = unlocked.layout.record_offset(copy, zone);
        medium.control().overwrite(offset + 60, b"rot");
    };
    spoil(RecordCopy::B);
    let found = records(&medium, &unlocked)[9];
    assert_eq!(found.faults, [None, Some(RecordError::Forged)]);
    assert_eq!(found.newest.unwrap().sequence, 0);
    spoil(RecordCopy::A);
    let all = records(&medium, &unlocked);
    assert_eq!(all[9].newest, None);
    assert_eq!(all.iter().filter(|found| found.is_sound()).count(), 127);
}

#[test]
fn records_swapped_between_zones_are_lost() {
    let medium = zoned();
    let unlocked = unlock(&medium, &key(1)).unwrap();
    let offset = |zone| {
        unlocked
            .layout
            .record_offset(RecordCopy::A, ZoneIndex(zone))
    };
    let stolen = medium.control().peek(offset(5), RECORD_LEN);
    medium.control().overwrite(offset(6), &stolen);
    assert_eq!(
        records(&medium, &unlocked)[6].faults,
        [Some(RecordError::Zone(5)), None]
    );
}

/// Making an image over an older one is cut off at every write and every sync, and the power then
/// takes what it likes: what opens afterwards, old or new, is whole.
#[test]
fn half_an_image_is_never_taken_for_one() {
    let geometry = geometry(Model::HostManaged);
    let (mut opened_old, mut opened_new, mut refused) = (0, 0, 0);
    for kind in [Kind::MetadataWrite, Kind::Sync] {
        for nth in 1..40 {
            let medium = zoned();
            medium.control().fail_nth(kind, nth, Fault::Fail(libc::EIO));
            let made = make(&medium, &geometry, &key(2));
            for seed in 0..12 {
                let cut = medium.control().crash(seed);
                let old = unlock(&cut, &key(1));
                let new = unlock(&cut, &key(2));
                assert!(old.is_err() || new.is_err());
                assert!(made.is_err() || new.is_ok(), "a finished image is lost");
                for unlocked in [&old, &new].into_iter().flatten() {
                    let sound = records(&cut, unlocked).iter().all(LoadedRecord::is_sound);
                    assert!(sound, "{kind:?} {nth} seed {seed}");
                }
                opened_old += u32::from(old.is_ok());
                opened_new += u32::from(new.is_ok());
                refused += u32::from(old.is_err() && new.is_err());
            }
            if made.is_ok() {
                break;
            }
        }
    }
    assert!(opened_old > 0 && opened_new > 0 && refused > 0);
}

#[test]
fn features_that_forbid_writing_are_kept_from_it() {
    let medium = zoned();
    let unlocked = unlock(&medium, &key(1)).unwrap();
    let header_key = unlocked.header_key().unwrap();
    let mut header = unlocked.header.with_read_only_feature(4);
    let before = medium.control().peek(0, 2 * PAGE);
    assert!(matches!(
        write_header(&medium, &header_key, &mut header),
        Err(ImageError::ReadOnlyFeatures(4))
    ));
    assert_eq!(medium.control().peek(0, 2 * PAGE), before);
}
