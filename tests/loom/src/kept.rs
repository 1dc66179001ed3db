//! Memory that a front-end keeps, as a file that notes what is stored into it in which order; and what else
//! the code that writes it uses.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;

pub(crate) use crate::geometry;

/// Bytes at a place.
pub(crate) type StoreOf = (usize, Vec<u8>);

#[derive(Debug, Default)]
struct Inside {
    bytes: RefCell<Vec<u8>>,
    stores: RefCell<Vec<StoreOf>>,
}

/// A memfd.
#[derive(Clone, Debug, Default)]
pub(crate) struct File(Rc<Inside>);

pub(crate) struct Metadata(u64);

pub(crate) trait MetadataExt {}

impl Metadata {
    pub(crate) fn len(&self) -> u64 {
        self.0
    }

    pub(crate) fn blksize(&self) -> u64 {
        4096
    }

    pub(crate) fn dev(&self) -> u64 {
        0
    }

    pub(crate) fn ino(&self) -> u64 {
        0
    }
}

impl File {
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let file = Self::default();
        *file.0.bytes.borrow_mut() = bytes;
        file
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.bytes.borrow().clone()
    }

    /// What was stored since this was asked last, in its order.
    pub(crate) fn take_stores(&self) -> Vec<StoreOf> {
        self.0.stores.take()
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        Ok(Metadata(self.0.bytes.borrow().len() as u64))
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.0.bytes.borrow_mut().resize(len, 0);
        Ok(())
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(self.clone())
    }
}

pub(crate) struct MemfdOptions;

pub(crate) struct Memfd(File);

#[derive(Debug)]
pub(crate) enum FileSeal {
    SealShrink,
    SealGrow,
    SealSeal,
}

impl MemfdOptions {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn allow_sealing(self, _allow: bool) -> Self {
        self
    }

    pub(crate) fn close_on_exec(self, _close: bool) -> Self {
        self
    }

    pub(crate) fn create(self, _name: &str) -> io::Result<Memfd> {
        Ok(Memfd(File::default()))
    }
}

impl Memfd {
    pub(crate) fn as_file(&self) -> &File {
        &self.0
    }

    pub(crate) fn add_seals(&self, _seals: &[FileSeal]) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn into_file(self) -> File {
        self.0
    }
}

pub(crate) struct FileOffset(File);

impl FileOffset {
    pub(crate) fn new(file: File, offset: u64) -> Self {
        assert_eq!(offset, 0);
        Self(file)
    }
}

/// A mapping of a whole file, and any part of it.
#[derive(Debug)]
pub(crate) struct MmapRegion(File);

pub(crate) trait VolatileMemory {}

pub(crate) trait Bytes {}

/// Numbers that are stored at once.
pub(crate) trait AtomicAccess: Copy {
    fn to_vec(self) -> Vec<u8>;
    fn of(bytes: &[u8]) -> Self;
}

macro_rules! atomic {
    ($($number:ty),*) => {$(
        impl AtomicAccess for $number {
            fn to_vec(self) -> Vec<u8> {
                self.to_ne_bytes().to_vec()
            }

            fn of(bytes: &[u8]) -> Self {
                Self::from_ne_bytes(bytes.try_into().expect("its size"))
            }
        }
    )*};
}

atomic!(u8, u16, u64);

impl MmapRegion {
    pub(crate) fn from_file(file: FileOffset, len: usize) -> io::Result<Self> {
        assert!(file.0.0.bytes.borrow().len() >= len);
        Ok(Self(file.0))
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        std::ptr::null()
    }

    pub(crate) fn size(&self) -> usize {
        self.0.0.bytes.borrow().len()
    }

    pub(crate) fn as_volatile_slice(&self) -> &Self {
        self
    }

    pub(crate) fn load<T: AtomicAccess>(&self, at: usize, _order: Ordering) -> Result<T, ()> {
        let bytes = self.0.0.bytes.borrow();
        bytes.get(at..at + size_of::<T>()).map(T::of).ok_or(())
    }

    pub(crate) fn store<T: AtomicAccess>(
        &self,
        value: T,
        at: usize,
        order: Ordering,
    ) -> Result<(), ()> {
        assert_eq!(order, Ordering::Release, "or a store may overtake it");
        let mut bytes = self.0.0.bytes.borrow_mut();
        let place = bytes.get_mut(at..at + size_of::<T>()).ok_or(())?;
        place.copy_from_slice(&value.to_vec());
        self.0.0.stores.borrow_mut().push((at, value.to_vec()));
        Ok(())
    }

    pub(crate) fn get_atomic_ref<T>(&self, at: usize) -> Result<AtomicRef<'_>, ()> {
        Ok(AtomicRef(self, at))
    }
}

/// Eight bytes of a mapping.
pub(crate) struct AtomicRef<'m>(&'m MmapRegion, usize);

impl AtomicRef<'_> {
    pub(crate) fn compare_exchange(
        &self,
        old: u64,
        new: u64,
        _success: Ordering,
        _failure: Ordering,
    ) -> Result<u64, u64> {
        let found = self.0.load(self.1, Ordering::Acquire).unwrap_or(!old);
        if found != old {
            return Err(found);
        }
        let stored = self.0.store(new, self.1, Ordering::Release);
        stored.map(|()| old).map_err(|()| old)
    }
}

pub(crate) enum CrcAlgorithm {
    Crc64Nvme,
}

/// Any sum does that half an intent does not have by chance.
pub(crate) fn checksum(_algorithm: CrcAlgorithm, bytes: &[u8]) -> u64 {
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

pub(crate) mod guard {
    #[derive(Debug)]
    pub(crate) struct Guarded;

    #[derive(Debug, thiserror::Error)]
    #[error("too many")]
    pub(crate) struct TooMany;

    pub(crate) fn guard(_start: *const u8, _len: usize, _page: usize) -> Result<Guarded, TooMany> {
        Ok(Guarded)
    }
}

pub(crate) mod mutant {
    pub(crate) enum Mutant {
        AnswerTwice,
    }

    impl Mutant {
        pub(crate) fn is_on(&self) -> bool {
            false
        }
    }
}

pub(crate) mod volume {
    use super::zone::{Epoch, Intent};

    #[derive(Debug)]
    pub(crate) struct Uuid(pub(crate) u64, pub(crate) u64);

    impl Uuid {
        pub(crate) fn as_u64_pair(&self) -> (u64, u64) {
            (self.0, self.1)
        }
    }

    #[derive(Debug)]
    pub(crate) struct Identity {
        pub(crate) uuid: Uuid,
        pub(crate) epoch: Epoch,
        pub(crate) last_epoch: Epoch,
    }

    pub(crate) trait Keeper {
        fn spoil(&self, undone: &mut dyn FnMut(&Intent) -> bool);
    }
}

pub(crate) mod zone {
    use super::geometry::{Blocks, Generation, ZoneIndex};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Epoch(pub(crate) u64);

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Change {
        Write { start: Blocks, count: Blocks },
        Reset,
        Finish,
        ResetAll,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Intent {
        pub(crate) zone: ZoneIndex,
        pub(crate) generation: Generation,
        pub(crate) change: Change,
    }
}
