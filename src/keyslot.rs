//! Keyslots: a fixed number of programmed zone keys that requests refer to.
//!
//! As in the kernel's blk-crypto, a slot holds an expanded key, a request takes a reference for as
//! long as it encrypts, and a miss programs the least recently used slot that no request holds.
//! A key belongs to one zone in one generation: a reset makes a new one and evicts the old.
//!
//! Each queue keeps a [`KeyCache`] of weak references, so a hit takes no lock. A cached reference
//! to an evicted key fails to upgrade, and a key is wiped when its last user lets go of it.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::crypt::{Cipher, KeyError};
use crate::geometry::{Generation, ZoneIndex};
use crate::integrity::{Binding, BlockCipher};
use crate::secret::{SecretError, VolumeKey, derive_zone_key};
use crate::zone::ZoneSalt;

/// Slots of a disk unless told otherwise: more than the zones a file system writes at once.
pub const DEFAULT_SLOTS: usize = 64;
/// Fewest slots: one for each queue there can be, so that a request never waits for one.
pub const MIN_SLOTS: usize = 16;
/// Most slots: bounds the memory that holds keys to a few MiB.
pub const MAX_SLOTS: usize = 4096;
/// Entries of a queue's cache, a power of two.
const CACHE_ENTRIES: usize = 64;

/// Which key: of a zone in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId {
    /// The zone.
    pub zone: ZoneIndex,
    /// Its generation.
    pub generation: Generation,
}

/// Why a key could not be programmed.
#[derive(Debug, Error)]
pub enum KeyslotError {
    /// The zone was reset meanwhile: that generation has no key any more.
    #[error("the key of {} generation {} is erased", .0.zone, .0.generation.0)]
    Erased(KeyId),
    /// The key could not be derived.
    #[error("cannot derive a zone key: {0}")]
    Derive(#[from] SecretError),
    /// The derived key is not fit for the cipher.
    #[error("cannot use a derived zone key: {0}")]
    Key(#[from] KeyError),
}

#[derive(Debug)]
struct Programmed {
    cipher: BlockCipher,
    last_use: AtomicU64,
}

/// A reference to a programmed key.
#[derive(Clone, Debug)]
pub struct KeyRef(Arc<Programmed>);

impl Deref for KeyRef {
    type Target = BlockCipher;

    fn deref(&self) -> &BlockCipher {
        &self.0.cipher
    }
}

/// A queue's own look-up of keys it has used.
#[derive(Debug)]
pub struct KeyCache {
    entries: Vec<Option<(KeyId, Weak<Programmed>)>>,
}

impl Default for KeyCache {
    fn default() -> Self {
        Self {
            entries: vec![None; CACHE_ENTRIES],
        }
    }
}

impl KeyCache {
    fn entry(&mut self, zone: ZoneIndex) -> Option<&mut Option<(KeyId, Weak<Programmed>)>> {
        self.entries.get_mut(zone.as_usize() % CACHE_ENTRIES)
    }
}

/// How often what happened since the disk was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyslotStats {
    /// Found in the queue's own cache.
    pub cache_hits: u64,
    /// Found in a slot.
    pub slot_hits: u64,
    /// Derived and programmed.
    pub programs: u64,
    /// Thrown out, for another key or by a reset.
    pub evictions: u64,
}

#[derive(Debug, Default)]
struct Counters {
    cache_hits: AtomicU64,
    slot_hits: AtomicU64,
    programs: AtomicU64,
    evictions: AtomicU64,
}

/// The slots, and what is needed to program them.
pub struct Keyslots {
    volume_key: VolumeKey,
    uuid: Uuid,
    cipher: Cipher,
    capacity: usize,
    slots: Mutex<Vec<(KeyId, Arc<Programmed>)>>,
    clock: AtomicU64,
    counters: Counters,
}

impl fmt::Debug for Keyslots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyslots")
            .field("cipher", &self.cipher)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl Keyslots {
    /// `slots` (brought within [`MIN_SLOTS`]..=[`MAX_SLOTS`]) empty slots for keys derived from
    /// `volume_key`.
    pub fn new(volume_key: VolumeKey, uuid: Uuid, cipher: Cipher, slots: usize) -> Self {
        Self {
            volume_key,
            uuid,
            cipher,
            capacity: slots.clamp(MIN_SLOTS, MAX_SLOTS),
            slots: Mutex::new(Vec::new()),
            clock: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// The key `id`, from the queue's cache, a slot, or derived. `salt` is asked for the zone's
    /// salt on a miss, and answers `None` if the generation is over.
    pub fn get(
        &self,
        cache: &mut KeyCache,
        id: KeyId,
        salt: impl FnOnce() -> Option<ZoneSalt>,
    ) -> Result<KeyRef, KeyslotError> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        if let Some(Some((cached, weak))) = cache.entry(id.zone)
            && *cached == id
            && let Some(key) = weak.upgrade()
        {
            key.last_use.store(now, Ordering::Relaxed);
            self.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
            return Ok(KeyRef(key));
        }
        let key = self.get_slot(id, salt)?;
        key.last_use.store(now, Ordering::Relaxed);
        if let Some(entry) = cache.entry(id.zone) {
            *entry = Some((id, Arc::downgrade(&key)));
        }
        Ok(KeyRef(key))
    }

    fn get_slot(
        &self,
        id: KeyId,
        salt: impl FnOnce() -> Option<ZoneSalt>,
    ) -> Result<Arc<Programmed>, KeyslotError> {
        let mut slots = self.slots.lock();
        if let Some((_, key)) = slots.iter().find(|(slot, _)| *slot == id) {
            self.counters.slot_hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(key));
        }
        // The salt is looked up under the slots' lock: a reset that comes now evicts afterwards
        // and so cannot leave the key of an erased generation behind.
        let salt = salt().ok_or(KeyslotError::Erased(id))?;
        let key = Arc::new(self.program(id, &salt)?);
        self.counters.programs.fetch_add(1, Ordering::Relaxed);
        if slots.len() >= self.capacity {
            self.evict_idle(&mut slots);
        }
        slots.push((id, Arc::clone(&key)));
        Ok(key)
    }

    fn program(&self, id: KeyId, salt: &ZoneSalt) -> Result<Programmed, KeyslotError> {
        let mut key = Zeroizing::new(vec![0; self.cipher.key_len()]);
        derive_zone_key(
            &self.volume_key,
            &self.uuid,
            id.zone,
            id.generation,
            salt,
            &mut key,
        )?;
        let binding = Binding {
            uuid: self.uuid,
            zone: id.zone,
            generation: id.generation,
        };
        Ok(Programmed {
            cipher: BlockCipher::new(self.cipher, &key, binding)?,
            last_use: AtomicU64::new(0),
        })
    }

    /// Empties the slot that was idle for longest. There is an idle one: requests hold a key only
    /// while they encrypt, one a queue, and there are at least as many slots as queues.
    fn evict_idle(&self, slots: &mut Vec<(KeyId, Arc<Programmed>)>) {
        let idle = slots
            .iter()
            .enumerate()
            .filter(|(_, (_, key))| Arc::strong_count(key) == 1)
            .min_by_key(|(_, (_, key))| key.last_use.load(Ordering::Relaxed))
            .map(|(position, _)| position);
        if let Some(position) = idle {
            slots.swap_remove(position);
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Throws out every key of `zone`. Who holds one at this moment keeps it until it is done.
    pub fn evict(&self, zone: ZoneIndex) {
        let mut slots = self.slots.lock();
        let before = slots.len();
        slots.retain(|(id, _)| id.zone != zone);
        let evicted = u64::try_from(before - slots.len()).unwrap_or(u64::MAX);
        self.counters
            .evictions
            .fetch_add(evicted, Ordering::Relaxed);
    }

    /// What happened so far.
    pub fn stats(&self) -> KeyslotStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KeyslotStats {
            cache_hits: load(&self.counters.cache_hits),
            slot_hits: load(&self.counters.slot_hits),
            programs: load(&self.counters.programs),
            evictions: load(&self.counters.evictions),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::geometry::Blocks;
    use crate::integrity::Stamp;

    use super::*;

    fn keyslots() -> Keyslots {
        let key = VolumeKey::random().unwrap();
        Keyslots::new(key, Uuid::nil(), Cipher::Aes256Xts, MIN_SLOTS)
    }

    fn id(zone: u32, generation: u64) -> KeyId {
        KeyId {
            zone: ZoneIndex(zone),
            generation: Generation(generation),
        }
    }

    const SALT: ZoneSalt = ZoneSalt([3; 32]);

    fn encrypt(key: &BlockCipher) -> Vec<u8> {
        let mut block = vec![0; 512];
        key.seal(512, Blocks(0), Stamp::default(), &mut block, &mut [])
            .unwrap();
        block
    }

    #[test]
    fn a_second_use_hits_the_cache_and_another_queue_hits_the_slot() {
        let slots = keyslots();
        let (mut one, mut two) = (KeyCache::default(), KeyCache::default());
        let first = slots.get(&mut one, id(1, 0), || Some(SALT)).unwrap();
        let again = slots.get(&mut one, id(1, 0), || None).unwrap();
        let other = slots.get(&mut two, id(1, 0), || None).unwrap();
        assert_eq!(encrypt(&first), encrypt(&again));
        assert_eq!(encrypt(&first), encrypt(&other));
        let stats = slots.stats();
        assert_eq!(
            (stats.programs, stats.cache_hits, stats.slot_hits),
            (1, 1, 1)
        );
    }

    #[test]
    fn zone_generation_and_salt_each_make_another_key() {
        let slots = keyslots();
        let mut cache = KeyCache::default();
        let mut block = |id, salt| {
            slots.evict(ZoneIndex(1));
            encrypt(&slots.get(&mut cache, id, || Some(salt)).unwrap())
        };
        let blocks = [
            block(id(1, 0), SALT),
            block(id(1, 1), SALT),
            block(id(2, 0), SALT),
            block(id(1, 0), ZoneSalt([4; 32])),
        ];
        for (i, a) in blocks.iter().enumerate() {
            assert!(blocks[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn an_evicted_key_is_gone_from_every_cache() {
        let slots = keyslots();
        let mut cache = KeyCache::default();
        drop(slots.get(&mut cache, id(1, 0), || Some(SALT)).unwrap());
        slots.evict(ZoneIndex(1));
        assert!(matches!(
            slots.get(&mut cache, id(1, 0), || None),
            Err(KeyslotError::Erased(_))
        ));
    }

    #[test]
    fn the_least_recently_used_idle_slot_gives_way() {
        let slots = keyslots();
        let mut cache = KeyCache::default();
        let count = u32::try_from(MIN_SLOTS).unwrap();
        let held = slots.get(&mut cache, id(0, 0), || Some(SALT)).unwrap();
        for zone in 1..count {
            let _ = slots.get(&mut cache, id(zone, 0), || Some(SALT)).unwrap();
        }
        let _ = slots.get(&mut cache, id(1, 0), || None).unwrap();
        let _ = slots.get(&mut cache, id(count, 0), || Some(SALT)).unwrap();
        assert_eq!(slots.slots.lock().len(), MIN_SLOTS);
        let missing = |zone| {
            slots
                .get(&mut KeyCache::default(), id(zone, 0), || None)
                .is_err()
        };
        assert!(missing(2) && !missing(0) && !missing(1));
        drop(held);
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", keyslots());
        assert_eq!(text, "Keyslots { cipher: Aes256Xts, capacity: 16, .. }");
    }
}
