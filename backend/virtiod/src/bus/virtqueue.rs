//! One virtqueue: where its rings lie, whether it is enabled, and its doorbell.

use protocol::grant::PAGE_SIZE;
use protocol::message::{StateOperation, VqueueState, VqueueUpdate};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::dma::{AccessFault, AccessPlatform, DmaMemory, DmaRange, MappingId};
use xen::{Access, LocalPort};

/// Most pages of one ring area (SPEC section 7).
const MAX_RING_PAGES: u64 = 16;

/// Why SET_VQUEUE changed nothing [6.3].
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The features are not agreed upon yet [6.1].
    #[error("it comes before FEATURES_OK")]
    Early,
    /// The device has fewer queues.
    #[error("there is no such queue")]
    NoSuchQueue,
    /// The queue is enabled.
    #[error("the queue is enabled; only a reset changes it")]
    Enabled,
    /// Reserved flags are set, or the reserved state.
    #[error("reserved flags {0:#x}")]
    Flags(u32),
    /// The reserved field is not 0.
    #[error("the reserved field holds {0:#x}")]
    Reserved(u32),
    /// The size is not a power of two up to the maximum.
    #[error("size {0} is not a power of two up to the queue's maximum")]
    Size(u32),
    /// An address is not aligned as its area must be (virtio 1.3 section 2.7).
    #[error("an area at {0:#x} is misaligned")]
    Alignment(u64),
    /// A ring cannot be mapped.
    #[error(transparent)]
    Ring(#[from] AccessFault),
    /// The queue's own check failed.
    #[error("the ring is refused")]
    Queue(#[from] virtio_queue::Error),
}

/// What SET_VQUEUE led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updated {
    /// The queue is enabled, and was not.
    Enabled,
    /// Its state is as before.
    Unchanged,
}

/// Addresses and size, as the driver set them so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RingSetup {
    size: u16,
    descriptor: u64,
    driver: u64,
    device: u64,
}

impl RingSetup {
    /// The set-up with an update's fields, as far as they count.
    fn with(mut self, update: &VqueueUpdate, max_size: u16) -> Result<Self, UpdateError> {
        let flags = update.flags;
        if flags.has_size() {
            let size = u16::try_from(update.size).ok();
            let size = size.filter(|size| size.is_power_of_two() && *size <= max_size);
            self.size = size.ok_or(UpdateError::Size(update.size))?;
        }
        if flags.has_descriptor() {
            self.descriptor = aligned(update.descriptor, 16)?;
        }
        if flags.has_driver() {
            self.driver = aligned(update.driver, 2)?;
        }
        if flags.has_device() {
            self.device = aligned(update.device, 4)?;
        }
        Ok(self)
    }

    /// The ring areas [6.3]: sizes of a split ring (virtio 1.3 section 2.7), event index included.
    fn areas(&self) -> [DmaRange; 3] {
        let size = u64::from(self.size);
        let area = |address, length, access| DmaRange { address, length, access };
        [
            area(self.descriptor, 16 * size, Access::ReadOnly),
            area(self.driver, 6 + 2 * size, Access::ReadOnly),
            area(self.device, 6 + 8 * size, Access::ReadWrite),
        ]
    }
}

fn aligned(address: u64, to: u64) -> Result<u64, UpdateError> {
    if address.is_multiple_of(to) { Ok(address) } else { Err(UpdateError::Alignment(address)) }
}

/// A queue that runs.
struct Enabled {
    queue: Queue,
    rings: MappingId,
}

/// One virtqueue of a device.
pub struct Virtqueue {
    max_size: u16,
    setup: RingSetup,
    enabled: Option<Enabled>,
    doorbell: Option<LocalPort>,
}

impl Virtqueue {
    /// A queue that is not set up.
    pub fn new(max_size: u16) -> Self {
        // What a ring's size implies is bounded by its maximum size.
        debug_assert!(u64::from(max_size) * 16 <= MAX_RING_PAGES * PAGE_SIZE);
        Self { max_size, setup: RingSetup::default(), enabled: None, doorbell: None }
    }

    /// Its doorbell, once bound.
    pub fn doorbell(&self) -> Option<LocalPort> {
        self.doorbell
    }

    /// Sets its doorbell; gives the one before.
    pub fn set_doorbell(&mut self, port: LocalPort) -> Option<LocalPort> {
        self.doorbell.replace(port)
    }

    /// Whether it runs.
    pub fn is_enabled(&self) -> bool {
        self.enabled.is_some()
    }

    /// The ring, while the queue is enabled.
    pub fn ring(&mut self) -> Option<&mut Queue> {
        self.enabled.as_mut().map(|enabled| &mut enabled.queue)
    }

    /// GET_VQUEUE's answer.
    pub fn state(&self, index: u32) -> VqueueState {
        VqueueState {
            index,
            max_size: self.max_size.into(),
            size: self.setup.size.into(),
            enabled: self.enabled.is_some(),
            descriptor: self.setup.descriptor,
            driver: self.setup.driver,
            device: self.setup.device,
        }
    }

    /// SET_VQUEUE: all of it, or nothing [6.3].
    ///
    /// # Errors
    /// [`UpdateError`]; the queue is as it was.
    pub fn update<P: AccessPlatform>(
        &mut self,
        update: &VqueueUpdate,
        event_idx: bool,
        memory: &mut DmaMemory<P>,
    ) -> Result<Updated, UpdateError> {
        let flags = update.flags;
        let operation = flags.operation().ok_or(UpdateError::Flags(flags.0))?;
        if update.reserved != 0 {
            return Err(UpdateError::Reserved(update.reserved));
        }
        if self.is_enabled() {
            let changes = flags.has_fields() || operation == StateOperation::KeepDisabled;
            return if changes { Err(UpdateError::Enabled) } else { Ok(Updated::Unchanged) };
        }
        let setup = self.setup.with(update, self.max_size)?;
        let enables = operation == StateOperation::Enable;
        if enables {
            self.enabled = Some(enable(setup, self.max_size, event_idx, memory)?);
        }
        self.setup = setup;
        Ok(if enables { Updated::Enabled } else { Updated::Unchanged })
    }

    /// RESET_VQUEUE: disables it and forgets its set-up; gives the doorbell to be closed.
    pub fn reset<P: AccessPlatform>(&mut self, memory: &mut DmaMemory<P>) -> Option<LocalPort> {
        if let Some(enabled) = self.enabled.take() {
            memory.unmap_ring(enabled.rings);
        }
        self.setup = RingSetup::default();
        self.doorbell.take()
    }
}

fn enable<P: AccessPlatform>(
    setup: RingSetup,
    max_size: u16,
    event_idx: bool,
    memory: &mut DmaMemory<P>,
) -> Result<Enabled, UpdateError> {
    if setup.size == 0 {
        return Err(UpdateError::Size(0));
    }
    let rings = memory.map_ring(&setup.areas())?;
    let set_up = || -> Result<Queue, virtio_queue::Error> {
        let mut queue = Queue::new(max_size)?;
        queue.try_set_size(setup.size)?;
        queue.try_set_desc_table_address(GuestAddress(setup.descriptor))?;
        queue.try_set_avail_ring_address(GuestAddress(setup.driver))?;
        queue.try_set_used_ring_address(GuestAddress(setup.device))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    };
    match set_up() {
        Ok(queue) => Ok(Enabled { queue, rings }),
        Err(error) => {
            memory.unmap_ring(rings);
            Err(error.into())
        }
    }
}
