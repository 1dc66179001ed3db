//! Keyslots: a fixed number of programmed zone keys that requests refer to.
//!
//! As in the kernel's blk-crypto, a slot holds an expanded key, a request takes a reference for as
//! long as it encrypts, and a miss programs the least recently used slot that no request holds.
//! A key belongs to one zone in one generation: a reset makes a new one and evicts the old.
//!
//! Each queue keeps a [`KeyCache`] of weak references, so a hit takes no lock. A cached reference
//! to an evicted key fails to upgrade, and a key is wiped when its last user lets go of it.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use thiserror::Error;
use uuid::Uuid;

use crate::arena::{self, GuardedBytes};
use crate::crypt::{Cipher, KeyError};
use crate::geometry::{Generation, ZoneIndex};
use crate::integrity::{Binding, BlockCipher};
use crate::secret::{SecretError, VolumeKey, derive_zone_key};
use crate::zone::ZoneSalt;

/// Slots of a disk unless told otherwise: reads at random go to many zones, and a key that has no slot
/// takes longer to derive than the block to read. These are the keys of 64 GiB in zones of 64 MiB, in
/// about 1 MiB.
pub const DEFAULT_SLOTS: u32 = 1024;
/// Fewest slots: one for each queue there can be, so that a request never waits for one.
pub const MIN_SLOTS: usize = 16;
/// Most slots: bounds the memory that holds keys to about 64 MiB, one for each zone of a large disk.
pub const MAX_SLOTS: usize = 65_536;
/// Entries of a queue's cache.
const CACHE_ENTRIES: usize = 1024;
/// Slots among which the one to be emptied is looked for, which bounds a miss; the search goes on from
/// there the next time. Of that many or fewer slots it is exactly the one that was idle for longest.
const EVICTION_CANDIDATES: usize = 64;

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

/// A queue's own look-up of keys it has used. Made by [`Keyslots::cache`].
#[derive(Debug)]
pub struct KeyCache {
    entries: Vec<Option<(KeyId, Weak<Programmed>)>>,
    /// Counted by its owner alone, so that queues do not wait for each other's counting.
    hits: Arc<AtomicU64>,
    slot_hits: u64,
    programs: u64,
}

impl KeyCache {
    /// Keys that its owner found, here or in a slot.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed) + self.slot_hits
    }

    /// Keys that its owner had to derive.
    pub fn misses(&self) -> u64 {
        self.programs
    }

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
    cache_hits: Mutex<CacheHits>,
    slot_hits: AtomicU64,
    programs: AtomicU64,
    evictions: AtomicU64,
}

/// Hits of all caches: of those that are gone, and counters of those that there may be.
#[derive(Debug, Default)]
struct CacheHits {
    gone: u64,
    caches: Vec<Arc<AtomicU64>>,
}

impl CacheHits {
    fn join(&mut self, hits: &Arc<AtomicU64>) {
        let gone = &mut self.gone;
        self.caches.retain(|hits| {
            let there = Arc::strong_count(hits) > 1;
            *gone += if there {
                0
            } else {
                hits.load(Ordering::Relaxed)
            };
            there
        });
        self.caches.push(Arc::clone(hits));
    }

    fn sum(&self) -> u64 {
        let caches = self.caches.iter().map(|hits| hits.load(Ordering::Relaxed));
        self.gone + caches.sum::<u64>()
    }
}

#[derive(Debug, Default)]
struct Slots {
    filled: Vec<(KeyId, Arc<Programmed>)>,
    /// Of each zone the place of its newest key.
    places: HashMap<ZoneIndex, usize>,
    /// Where the search for one to be emptied goes on.
    cursor: usize,
}

impl Slots {
    fn find(&self, id: KeyId) -> Option<&Arc<Programmed>> {
        let (found, key) = self.filled.get(*self.places.get(&id.zone)?)?;
        (*found == id).then_some(key)
    }

    /// Fills a slot; a zone has one key at a time, so that of another generation makes way. Says
    /// whether one did.
    fn fill(&mut self, id: KeyId, key: Arc<Programmed>) -> bool {
        let other = self.evict(id.zone);
        self.places.insert(id.zone, self.filled.len());
        self.filled.push((id, key));
        other
    }

    /// Empties the slot of a zone, if it has one.
    fn evict(&mut self, zone: ZoneIndex) -> bool {
        let place = self.places.get(&zone).copied();
        if let Some(place) = place {
            self.empty(place);
        }
        place.is_some()
    }

    fn empty(&mut self, place: usize) {
        let (id, _) = self.filled.swap_remove(place);
        self.places.remove(&id.zone);
        if let Some((moved, _)) = self.filled.get(place) {
            self.places.insert(moved.zone, place);
        }
    }

    /// The slot, of some of them, that was idle for longest. There is an idle one: requests hold a key
    /// only while they encrypt, one a queue, and there are more candidates than queues.
    fn idle(&mut self) -> Option<usize> {
        let len = self.filled.len();
        let start = self.cursor;
        self.cursor = (start + EVICTION_CANDIDATES) % len.max(1);
        (0..EVICTION_CANDIDATES.min(len))
            .map(|step| (start + step) % len)
            .filter(|&place| Arc::strong_count(&self.filled[place].1) == 1)
            .min_by_key(|&place| self.filled[place].1.last_use.load(Ordering::Relaxed))
    }
}

/// The slots, and what is needed to program them.
pub struct Keyslots {
    volume_key: VolumeKey,
    uuid: Uuid,
    cipher: Cipher,
    capacity: usize,
    slots: Mutex<Slots>,
    /// Counts misses: uses are told apart only as far as evictions care, and a hit writes to nothing
    /// that queues share.
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
        let capacity = slots.clamp(MIN_SLOTS, MAX_SLOTS);
        // Now, while every system call is allowed; one more a queue for keys that were evicted in use.
        arena::reserve(BlockCipher::arena_bytes(cipher), capacity + MIN_SLOTS);
        Self {
            volume_key,
            uuid,
            cipher,
            capacity,
            slots: Mutex::default(),
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
        if let Some(Some((cached, weak))) = cache.entry(id.zone)
            && *cached == id
            && let Some(key) = weak.upgrade()
        {
            let now = self.clock.load(Ordering::Relaxed);
            if key.last_use.load(Ordering::Relaxed) != now {
                key.last_use.store(now, Ordering::Relaxed);
            }
            let hits = cache.hits.load(Ordering::Relaxed);
            cache.hits.store(hits + 1, Ordering::Relaxed);
            return Ok(KeyRef(key));
        }
        let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        let key = self.get_slot(cache, id, salt)?;
        key.last_use.store(now, Ordering::Relaxed);
        if let Some(entry) = cache.entry(id.zone) {
            *entry = Some((id, Arc::downgrade(&key)));
        }
        Ok(KeyRef(key))
    }

    /// A queue's cache, empty.
    pub fn cache(&self) -> KeyCache {
        let hits = Arc::default();
        self.counters.cache_hits.lock().join(&hits);
        KeyCache {
            entries: vec![None; CACHE_ENTRIES],
            hits,
            slot_hits: 0,
            programs: 0,
        }
    }

    fn get_slot(
        &self,
        cache: &mut KeyCache,
        id: KeyId,
        salt: impl FnOnce() -> Option<ZoneSalt>,
    ) -> Result<Arc<Programmed>, KeyslotError> {
        let mut slots = self.slots.lock();
        if let Some(key) = slots.find(id) {
            self.counters.slot_hits.fetch_add(1, Ordering::Relaxed);
            cache.slot_hits += 1;
            return Ok(Arc::clone(key));
        }
        // The salt is looked up under the slots' lock: a reset that comes now evicts afterwards
        // and so cannot leave the key of an erased generation behind.
        let salt = salt().ok_or(KeyslotError::Erased(id))?;
        let key = Arc::new(self.program(id, &salt)?);
        self.counters.programs.fetch_add(1, Ordering::Relaxed);
        cache.programs += 1;
        if slots.filled.len() >= self.capacity
            && let Some(place) = slots.idle()
        {
            slots.empty(place);
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
        }
        let other = slots.fill(id, Arc::clone(&key));
        self.count_evictions(other);
        Ok(key)
    }

    fn program(&self, id: KeyId, salt: &ZoneSalt) -> Result<Programmed, KeyslotError> {
        let mut key = GuardedBytes::zeroed(self.cipher.key_len());
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

    /// Throws out every key of `zone`. Who holds one at this moment keeps it until it is done.
    pub fn evict(&self, zone: ZoneIndex) {
        let evicted = self.slots.lock().evict(zone);
        self.count_evictions(evicted);
    }

    fn count_evictions(&self, evicted: bool) {
        self.counters
            .evictions
            .fetch_add(evicted.into(), Ordering::Relaxed);
    }

    /// What happened so far.
    pub fn stats(&self) -> KeyslotStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KeyslotStats {
            cache_hits: self.counters.cache_hits.lock().sum(),
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
        let (mut one, mut two) = (slots.cache(), slots.cache());
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
        assert_eq!((one.hits(), one.misses()), (1, 1));
        assert_eq!((two.hits(), two.misses()), (1, 0));
    }

    #[test]
    fn hits_of_a_cache_that_is_gone_still_count() {
        let slots = keyslots();
        for round in 1..4 {
            let mut cache = slots.cache();
            for _ in 0..11 {
                let _ = slots.get(&mut cache, id(1, 0), || Some(SALT)).unwrap();
            }
            drop(cache);
            assert_eq!(slots.stats().cache_hits, round * 10);
        }
        let _ = slots.cache();
        assert_eq!(slots.counters.cache_hits.lock().caches.len(), 1);
    }

    #[test]
    fn zone_generation_and_salt_each_make_another_key() {
        let slots = keyslots();
        let mut cache = slots.cache();
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
        let mut cache = slots.cache();
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
        let mut cache = slots.cache();
        let count = u32::try_from(MIN_SLOTS).unwrap();
        let held = slots.get(&mut cache, id(0, 0), || Some(SALT)).unwrap();
        for zone in 1..count {
            let _ = slots.get(&mut cache, id(zone, 0), || Some(SALT)).unwrap();
        }
        let _ = slots.get(&mut cache, id(1, 0), || None).unwrap();
        let _ = slots.get(&mut cache, id(count, 0), || Some(SALT)).unwrap();
        assert_eq!(slots.slots.lock().filled.len(), MIN_SLOTS);
        let missing = |zone| slots.get(&mut slots.cache(), id(zone, 0), || None).is_err();
        assert!(missing(2) && !missing(0) && !missing(1));
        drop(held);
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", keyslots());
        assert_eq!(text, "Keyslots { cipher: Aes256Xts, capacity: 16, .. }");
    }
}
