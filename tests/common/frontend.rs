//! The front-end: negotiation, memory, queues, configuration; what a VMM does with a vhost-user-blk back-end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::inflight::Inflight;
use super::memory::{GuestRam, Span};
use super::queue::Queue;
use super::request::{CONFIG_SIZE, Config};
use super::wire::{Wire, WireError, le32, le64, longs, words};

/// Feature bits (virtio 1.4, "Reserved Feature Bits" and "Block Device / Feature bits"; vhost-user's bit 30).
pub mod feature {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// FLUSH is a request.
    pub const FLUSH: u64 = 1 << 9;
    /// The topology fields are valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// `writeback` can be read and written.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// `num_queues` is valid.
    pub const MQ: u64 = 1 << 12;
    /// DISCARD is a request.
    pub const DISCARD: u64 = 1 << 13;
    /// WRITE_ZEROES is a request.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// GET_LIFETIME is a request.
    pub const LIFETIME: u64 = 1 << 15;
    /// SECURE_ERASE is a request.
    pub const SECURE_ERASE: u64 = 1 << 16;
    /// The disk has zones.
    pub const ZONED: u64 = 1 << 17;
    /// Descriptor tables in buffers.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Event indices in the rings.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: protocol features exist.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;

    /// What this front-end can drive.
    pub const KNOWN: u64 = SEG_MAX
        | RO
        | BLK_SIZE
        | FLUSH
        | TOPOLOGY
        | CONFIG_WCE
        | MQ
        | DISCARD
        | WRITE_ZEROES
        | ZONED
        | INDIRECT_DESC
        | EVENT_IDX
        | PROTOCOL_FEATURES
        | VERSION_1;
}

/// What a connection asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Feature bits to take, of those offered.
    pub features: u64,
    /// Protocol features to take, of those offered.
    pub protocol: VhostUserProtocolFeatures,
    /// Queues to set up; more than the device has is an error.
    pub queues: u16,
    /// Entries of each ring.
    pub queue_size: u16,
    /// Guest memory.
    pub memory: Vec<Span>,
    /// Hand memory over region by region (CONFIGURE_MEM_SLOTS) instead of as a table.
    pub memory_slots: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: feature::KNOWN,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS,
            queues: 1,
            queue_size: 128,
            // Two regions that touch and a hole below them: guest-physical addresses are neither offsets nor pointers.
            memory: vec![
                Span::new(0x1_0000_0000, 24 << 20),
                Span::new(0x1_0000_0000 + (24 << 20), 40 << 20),
            ],
            memory_slots: false,
        }
    }
}

impl Options {
    /// Takes every known feature but these.
    pub fn without(features: u64) -> Self {
        Self {
            features: feature::KNOWN & !features,
            ..Self::default()
        }
    }

    /// Sets up `queues` queues.
    pub fn queues(queues: u16) -> Self {
        Self {
            queues,
            ..Self::default()
        }
    }
}

/// A session with a back-end.
#[derive(Debug)]
pub struct Frontend {
    /// The message channel, for tests that send messages by hand.
    pub wire: Wire,
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// The queues that run.
    pub queues: Vec<Queue>,
    /// Features that the back-end offered.
    pub offered: u64,
    /// Features that were taken.
    pub features: u64,
    /// Protocol features that the back-end offered.
    pub protocol_offered: VhostUserProtocolFeatures,
    /// Protocol features that were taken.
    pub protocol: VhostUserProtocolFeatures,
    /// What the back-end keeps here for the one after it, if it was asked to.
    pub inflight: Option<Inflight>,
    options: Options,
    socket: PathBuf,
}

impl Frontend {
    /// Connects with every known feature and one queue.
    ///
    /// # Panics
    /// If the back-end does not take part.
    pub fn open(socket: &Path) -> Self {
        Self::open_with(socket, Options::default())
    }

    /// [`Frontend::open`] with options.
    pub fn open_with(socket: &Path, options: Options) -> Self {
        match Self::start(socket, options) {
            Ok(frontend) => frontend,
            Err(err) => panic!("no session at {}: {err}", socket.display()),
        }
    }

    /// Negotiates, hands over memory and starts the queues.
    pub fn start(socket: &Path, options: Options) -> Result<Self, WireError> {
        let mut frontend = Self::negotiate(socket, options)?;
        frontend.set_features()?;
        frontend.set_memory()?;
        frontend.set_inflight()?;
        frontend.start_queues()?;
        Ok(frontend)
    }

    /// The first half of a session: everything up to the choice of features, which is not sent yet.
    pub fn negotiate(socket: &Path, options: Options) -> Result<Self, WireError> {
        let ram = Arc::new(GuestRam::new(&options.memory));
        let wire = Wire::connect(socket)?;
        let mut frontend = Self {
            wire,
            ram,
            queues: Vec::new(),
            offered: 0,
            features: 0,
            protocol_offered: VhostUserProtocolFeatures::empty(),
            protocol: VhostUserProtocolFeatures::empty(),
            inflight: None,
            options,
            socket: socket.to_path_buf(),
        };
        frontend.handshake()?;
        Ok(frontend)
    }

    fn handshake(&mut self) -> Result<(), WireError> {
        self.wire.use_acks(false);
        self.wire.tell(FrontendReq::SET_OWNER, &[], &[])?;
        self.offered = self.wire.ask_u64(FrontendReq::GET_FEATURES)?;
        self.features = self.offered & self.options.features;
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            let bits = self.wire.ask_u64(FrontendReq::GET_PROTOCOL_FEATURES)?;
            self.protocol_offered = VhostUserProtocolFeatures::from_bits_truncate(bits);
            self.protocol = self.protocol_offered & self.options.protocol;
            self.wire.tell(
                FrontendReq::SET_PROTOCOL_FEATURES,
                &longs(&[self.protocol.bits()]),
                &[],
            )?;
            self.wire
                .use_acks(self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        }
        Ok(())
    }

    /// Sends the choice of features.
    pub fn set_features(&mut self) -> Result<(), WireError> {
        let features = longs(&[self.features]);
        self.wire.tell(FrontendReq::SET_FEATURES, &features, &[])
    }

    /// Hands guest memory over.
    pub fn set_memory(&mut self) -> Result<(), WireError> {
        let regions = self.ram.regions();
        let describe = |r: &super::memory::Region| {
            longs(&[r.span.start, r.span.len, r.user_addr, r.file_offset])
        };
        if self.options.memory_slots {
            for region in &regions {
                let mut body = longs(&[0]);
                body.extend_from_slice(&describe(region));
                self.wire
                    .tell(FrontendReq::ADD_MEM_REG, &body, &[region.fd])?;
            }
            return Ok(());
        }
        let count = u32::try_from(regions.len()).expect("regions");
        let mut body = words(&[count, 0]);
        for region in &regions {
            body.extend_from_slice(&describe(region));
        }
        let fds: Vec<_> = regions.iter().map(|r| r.fd).collect();
        self.wire.tell(FrontendReq::SET_MEM_TABLE, &body, &fds)
    }

    /// Hands the inflight region over, and asks for one first if there is none yet; nothing without
    /// the protocol feature.
    pub fn set_inflight(&mut self) -> Result<(), WireError> {
        if !self
            .protocol
            .contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
        {
            return Ok(());
        }
        let region = match self.inflight.take() {
            Some(region) => region,
            None => Inflight::get(&mut self.wire, self.options.queues, self.options.queue_size)?,
        };
        let handed = region.set(&mut self.wire);
        self.inflight = Some(region);
        handed
    }

    /// Makes the queues of the options and starts them.
    pub fn start_queues(&mut self) -> Result<(), WireError> {
        let event_idx = self.features & feature::EVENT_IDX != 0;
        for index in 0..self.options.queues {
            let ram = Arc::clone(&self.ram);
            let queue = Queue::new(index, ram, self.options.queue_size, event_idx);
            self.queues.push(queue);
            self.start_queue(usize::from(index))?;
        }
        Ok(())
    }

    /// Hands one queue over at its present position and enables it.
    pub fn start_queue(&mut self, at: usize) -> Result<(), WireError> {
        let base = self.queues[at].ring.next_used();
        self.start_queue_from(at, base)
    }

    /// [`Frontend::start_queue`] with any base for the position in the available ring.
    pub fn start_queue_from(&mut self, at: usize, base: u16) -> Result<(), WireError> {
        let queue = &self.queues[at];
        let wire = &mut self.wire;
        let index = u32::from(queue.index);
        let size = u32::from(queue.ring.size());
        let base = u32::from(base);
        wire.tell(FrontendReq::SET_VRING_NUM, &words(&[index, size]), &[])?;
        wire.tell(FrontendReq::SET_VRING_BASE, &words(&[index, base]), &[])?;
        let [desc, avail, used] = queue.ring.addresses().map(|gpa| self.ram.user_addr(gpa));
        let mut body = words(&[index, 0]);
        body.extend_from_slice(&longs(&[desc, used, avail, 0]));
        wire.tell(FrontendReq::SET_VRING_ADDR, &body, &[])?;
        let which = longs(&[u64::from(index)]);
        let [kick, call, err] = queue.events().map(std::os::fd::AsRawFd::as_raw_fd);
        wire.tell(FrontendReq::SET_VRING_ERR, &which, &[err])?;
        wire.tell(FrontendReq::SET_VRING_CALL, &which, &[call])?;
        wire.tell(FrontendReq::SET_VRING_KICK, &which, &[kick])?;
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            self.enable_queue(at, true)?;
        }
        Ok(())
    }

    /// SET_VRING_ENABLE.
    pub fn enable_queue(&mut self, at: usize, on: bool) -> Result<(), WireError> {
        let index = u32::from(self.queues[at].index);
        let body = words(&[index, u32::from(on)]);
        self.wire.tell(FrontendReq::SET_VRING_ENABLE, &body, &[])
    }

    /// GET_VRING_BASE: stops a queue and returns the index of the next chain that the device would take.
    pub fn stop_queue(&mut self, at: usize) -> Result<u16, WireError> {
        let index = u32::from(self.queues[at].index);
        let body = words(&[index, 0]);
        let answer = self.wire.ask(FrontendReq::GET_VRING_BASE, &body)?;
        if answer.len() != 8 || le32(&answer, 0) != index {
            return Err(WireError::Garbled(format!("vring base: {answer:?}")));
        }
        u16::try_from(le32(&answer, 4)).map_err(|err| WireError::Garbled(err.to_string()))
    }

    /// `size` bytes of the configuration space from `offset`.
    pub fn get_config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>, WireError> {
        let mut body = words(&[offset, size, 0]);
        body.resize(12 + size as usize, 0);
        let answer = self.wire.ask(FrontendReq::GET_CONFIG, &body)?;
        let whole = answer.len() == 12 + size as usize;
        if !whole || le32(&answer, 0) != offset || le32(&answer, 4) != size {
            return Err(WireError::Garbled(format!(
                "config {offset}+{size}: {answer:?}"
            )));
        }
        Ok(answer[12..].to_vec())
    }

    /// Writes the configuration space.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), WireError> {
        let size = u32::try_from(bytes.len()).expect("config size");
        let mut body = words(&[offset, size, 0]);
        body.extend_from_slice(bytes);
        self.wire.tell(FrontendReq::SET_CONFIG, &body, &[])
    }

    /// The whole configuration space.
    pub fn config(&mut self) -> Config {
        let size = u32::try_from(CONFIG_SIZE).expect("size");
        Config(self.get_config(0, size).expect("configuration space"))
    }

    /// GET_QUEUE_NUM.
    pub fn queue_num(&mut self) -> Result<u64, WireError> {
        self.wire.ask_u64(FrontendReq::GET_QUEUE_NUM)
    }

    /// Waits until the back-end has handled everything sent so far, also without acknowledgements.
    pub fn sync(&mut self) -> Result<(), WireError> {
        self.wire.ask_u64(FrontendReq::GET_FEATURES).map(|_| ())
    }

    /// The only queue, or the first.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }

    /// Connects anew (to a restarted back-end) with the same memory, the inflight region if there is
    /// one, and the rings as they stand.
    pub fn reconnect(&mut self) -> Result<(), WireError> {
        let bases: Vec<_> = self
            .queues
            .iter()
            .map(|q| Some(q.ring.next_used()))
            .collect();
        self.reconnect_at(&bases)
    }

    /// [`Frontend::reconnect`] with the base of each queue; one without stays stopped.
    pub fn reconnect_at(&mut self, bases: &[Option<u16>]) -> Result<(), WireError> {
        self.wire = Wire::connect(&self.socket)?;
        let taken = self.features;
        self.handshake()?;
        if self.features != taken {
            return Err(WireError::Garbled(format!(
                "features {taken:#x} before, {:#x} now",
                self.features
            )));
        }
        self.set_features()?;
        self.set_memory()?;
        self.set_inflight()?;
        for (at, base) in bases.iter().enumerate() {
            if let Some(base) = base {
                self.start_queue_from(at, *base)?;
            }
        }
        Ok(())
    }

    /// Removes a memory region (CONFIGURE_MEM_SLOTS).
    pub fn remove_region(&mut self, at: usize) -> Result<(), WireError> {
        let region = self.ram.regions()[at];
        let mut body = longs(&[0]);
        body.extend_from_slice(&longs(&[
            region.span.start,
            region.span.len,
            region.user_addr,
            region.file_offset,
        ]));
        self.wire.tell(FrontendReq::REM_MEM_REG, &body, &[])
    }

    /// GET_MAX_MEM_SLOTS.
    pub fn max_mem_slots(&mut self) -> Result<u64, WireError> {
        let body = self.wire.ask(FrontendReq::GET_MAX_MEM_SLOTS, &[])?;
        Ok(le64(&body, 0))
    }
}
