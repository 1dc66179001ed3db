//! Protector slots: what anybody may have written, and what the wrapping key vouches for.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use uuid::Uuid;
use zonevault::format::image::fresh_record;
use zonevault::format::{Argon2Cost, MAX_LABEL_LEN, Protector, ProtectorKind, RecordKey, Slot};
use zonevault::geometry::{GeometrySpec, Model, ZoneIndex};
use zonevault::secret::{Credential, KeyMaterial, VolumeKey};
use zonevault::zone::ZoneSalt;
use zonevault_fuzz::seal::{self, AREA};

/// KiB of argon2id work, over all passes, that a case may cost.
const CHEAP: u64 = 64;

static KEY: LazyLock<Credential> = LazyLock::new(seal::credential);
static PHRASE: LazyLock<Credential> =
    LazyLock::new(|| Credential::Passphrase(KeyMaterial::new(b"correct horse".to_vec())));
static PROOF: LazyLock<[u8; 128]> = LazyLock::new(|| proof(&seal::volume_key()));

/// What only who has the volume key can make.
fn proof(key: &VolumeKey) -> [u8; 128] {
    let geometry = GeometrySpec {
        model: Model::Plain,
        block_size: 512,
        disk_size: 64 << 10,
        zone_size: 64 << 10,
        zone_capacity: 0,
        conventional: 0,
        max_open: 0,
        max_active: 0,
        max_append: 0,
    };
    let geometry = geometry.validate().expect("a plain disk");
    let record = fresh_record(&geometry, ZoneIndex(0), ZoneSalt([3; 32]));
    let key = RecordKey::new(key, &Uuid::nil()).expect("a MAC key");
    key.encode(ZoneIndex(0), 1, &record)
}

fn check_unseal(protector: &Protector, uuid: &Uuid, slot: u32, sealed: bool) {
    let unsealed = |slot, credential| {
        let key = protector.unseal(uuid, slot, credential);
        key.expect("within bounds, and no memory to speak of")
    };
    let cost = match protector.kind() {
        ProtectorKind::Passphrase(cost) => cost,
        ProtectorKind::KeyFile => {
            assert!(unsealed(slot, &PHRASE).is_none(), "of the other kind");
            let key = unsealed(slot, &KEY);
            assert_eq!(key.is_some(), sealed);
            assert!(key.is_none_or(|key| proof(&key) == *PROOF));
            assert!(unsealed(slot.wrapping_add(1), &KEY).is_none(), "moved");
            return;
        }
    };
    assert!(cost.is_bounded());
    assert!(unsealed(slot, &KEY).is_none(), "of the other kind");
    let work = u64::from(cost.memory_kib) * u64::from(cost.passes);
    assert!(work <= Argon2Cost::MAX_WORK_KIB);
    if work <= CHEAP {
        assert!(
            unsealed(slot, &PHRASE).is_none(),
            "wrapped under a passphrase by nobody"
        );
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[seals, slot], bytes)) = data.split_first_chunk() else {
        return;
    };
    let mut area = [0; AREA];
    let len = bytes.len().min(AREA);
    area[..len].copy_from_slice(&bytes[..len]);
    let (slot, uuid) = (u32::from(slot), Uuid::from_u128(u128::from(seals >> 2)));
    let sealed = seals & 1 == 0;
    if sealed {
        area[..8].copy_from_slice(b"ZVPROTEC");
        seal::protector_key(&mut area, uuid.as_bytes(), slot);
    }
    if seals & 3 != 3 {
        seal::protector_crc(&mut area);
    }
    match Slot::parse(&area) {
        Slot::Used(protector) => {
            assert!(area[512..].iter().all(|byte| *byte == 0));
            let label = protector.label();
            assert!(label.len() <= MAX_LABEL_LEN && !label.chars().any(char::is_control));
            assert!(protector.created() == u64::from_le_bytes(area[32..40].try_into().unwrap()));
            check_unseal(&protector, &uuid, slot, sealed);
        }
        Slot::Free => assert!(area.iter().all(|byte| *byte == 0)),
        Slot::Damaged | Slot::Unusable(_) => {}
    }
});
