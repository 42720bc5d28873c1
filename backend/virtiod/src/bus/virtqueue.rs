//! One virtqueue: the addresses of its ring, its state and its doorbell.

use protocol::grant::PAGE_SIZE;
use protocol::message::{StateOperation, VqueueState, VqueueUpdate};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, VolatileMemoryError};

use crate::device::{Ring, RingAreas, RingState, TakeOverError};
use crate::dma::{AccessFault, AccessPlatform, DmaMemory, DmaRange, RingMapping};
use crate::record::{QueueRecord, QueueSetup};
use xen::{Access, LocalPort, RemotePort};

/// Maximum number of pages of one ring area (SPEC section 7).
const MAX_RING_PAGES: u64 = 16;

/// An invalid SET_VQUEUE, which changes nothing [6.3].
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// FEATURES_OK is not set yet [6.1].
    #[error("SET_VQUEUE before FEATURES_OK")]
    Early,
    /// The device does not have the queue.
    #[error("the queue does not exist")]
    NoSuchQueue,
    /// The queue is already enabled.
    #[error("the queue is enabled; only a reset changes it")]
    Enabled,
    /// Reserved flags are set, or the reserved state operation.
    #[error("flags {0:#x} have reserved bits or the reserved state operation")]
    Flags(u32),
    /// The reserved field is not 0.
    #[error("the reserved field is {0:#x}, not 0")]
    Reserved(u32),
    /// The size is 0, above the maximum, or not a power of two.
    #[error("size {0} is not a power of two up to the queue's maximum")]
    Size(u32),
    /// An address is not aligned as its area must be (virtio 1.3 section 2.7).
    #[error("the ring area at {0:#x} is misaligned")]
    Alignment(u64),
    /// A ring area cannot be mapped.
    #[error(transparent)]
    Ring(#[from] AccessFault),
    /// virtio-queue refuses the ring.
    #[error("invalid ring")]
    Queue(#[from] virtio_queue::Error),
    /// The ring is not as an earlier process left it.
    #[error("cannot go on with the ring of an earlier process")]
    TakeOver(#[from] TakeOverError),
    /// An area of the ring is not mapped, which the set-up prevents.
    #[error("the ring is not mapped")]
    NotMapped,
    /// The ring is shorter than its size, which the set-up prevents.
    #[error("cannot access the ring")]
    Bytes(#[from] VolatileMemoryError),
    /// The earlier process left no record of the queue.
    #[error("the device's record has no such queue")]
    NoRecord,
}

/// The result of a valid SET_VQUEUE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Updated {
    /// The update enabled the queue.
    Enabled,
    /// The update did not change whether the queue is enabled.
    Unchanged,
}

/// The addresses and the size that the driver has set so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RingSetup {
    size: u16,
    descriptor: u64,
    driver: u64,
    device: u64,
}

impl RingSetup {
    /// Returns the setup with those fields of `update` that its flags select.
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

    /// A recorded set-up, checked as one of a driver's is.
    fn of(recorded: &QueueSetup, max_size: u16) -> Result<Self, UpdateError> {
        let QueueSetup { size, descriptor, driver, device, .. } = *recorded;
        if size > max_size || size != 0 && !size.is_power_of_two() {
            return Err(UpdateError::Size(size.into()));
        }
        Ok(Self {
            size,
            descriptor: aligned(descriptor, 16)?,
            driver: aligned(driver, 2)?,
            device: aligned(device, 4)?,
        })
    }

    /// The ring areas [6.3]: the sizes of a split ring (virtio 1.3 section 2.7), with event index.
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

/// The ring of an enabled queue, and its mapping.
struct Enabled<P: AccessPlatform> {
    state: RingState,
    mapping: RingMapping<P::Pages>,
}

/// The doorbell of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doorbell {
    local: LocalPort,
    /// The guest's end.
    remote: RemotePort,
}

/// One virtqueue of a device.
pub struct Virtqueue<P: AccessPlatform> {
    max_size: u16,
    setup: RingSetup,
    enabled: Option<Enabled<P>>,
    doorbell: Option<Doorbell>,
    /// Where another process finds what is taken from the queue.
    record: Option<QueueRecord>,
}

impl<P: AccessPlatform> Virtqueue<P> {
    /// Returns a queue without a setup.
    pub fn new(max_size: u16) -> Self {
        // The maximum queue size bounds the ring areas.
        debug_assert!(u64::from(max_size) * 16 <= MAX_RING_PAGES * PAGE_SIZE);
        let setup = RingSetup::default();
        Self { max_size, setup, enabled: None, doorbell: None, record: None }
    }

    /// Notes in `record` from now on what is taken from the queue.
    pub fn keep(&mut self, record: Option<QueueRecord>) {
        self.record = record;
    }

    /// The queue's doorbell, once bound.
    pub fn doorbell(&self) -> Option<LocalPort> {
        Some(self.doorbell?.local)
    }

    /// Sets the queue's doorbell and the guest's end of it; returns the previous one.
    pub fn set_doorbell(&mut self, local: LocalPort, remote: RemotePort) -> Option<LocalPort> {
        Some(self.doorbell.replace(Doorbell { local, remote })?.local)
    }

    /// Whether the queue is enabled.
    pub fn is_enabled(&self) -> bool {
        self.enabled.is_some()
    }

    /// The ring, while the queue is enabled.
    pub fn ring(&mut self) -> Option<Ring<'_>> {
        let Enabled { state, mapping } = self.enabled.as_mut()?;
        let [descriptors, driver, device] = mapping.areas()?;
        Some(Ring::new(state, RingAreas { descriptors, driver, device }))
    }

    /// The response to GET_VQUEUE.
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

    /// Whether another process would find what is taken from the queue.
    pub fn is_recorded(&self) -> bool {
        let fits = |record: &QueueRecord| record.size() >= self.setup.size;
        !self.is_enabled() || self.record.as_ref().is_some_and(fits)
    }

    /// The set-up, for the device's record.
    pub fn recorded(&self) -> QueueSetup {
        let RingSetup { size, descriptor, driver, device } = self.setup;
        let doorbell = self.doorbell.map(|doorbell| doorbell.remote.0);
        QueueSetup { size, descriptor, driver, device, enabled: self.is_enabled(), doorbell }
    }

    /// Sets the queue up as an earlier process left it, with the record of that process; its
    /// doorbell is bound apart.
    ///
    /// # Errors
    /// [`UpdateError`]; then the queue is not enabled.
    pub fn take_over(
        &mut self,
        recorded: &QueueSetup,
        record: Option<QueueRecord>,
        event_idx: bool,
        memory: &DmaMemory<P>,
    ) -> Result<(), UpdateError> {
        self.setup = RingSetup::of(recorded, self.max_size)?;
        self.record = record;
        if recorded.enabled {
            let record = self.record.clone().ok_or(UpdateError::NoRecord)?;
            let (queue, mapping) = map(self.setup, self.max_size, event_idx, memory)?;
            let [descriptors, driver, device] = mapping.areas().ok_or(UpdateError::NoRecord)?;
            let areas = RingAreas { descriptors, driver, device };
            let state = RingState::take_over(queue, record, areas)?;
            self.enabled = Some(Enabled { state, mapping });
        }
        Ok(())
    }

    /// Applies SET_VQUEUE: all of it, or nothing [6.3].
    ///
    /// # Errors
    /// [`UpdateError`]; then the queue is unchanged.
    pub fn update(
        &mut self,
        update: &VqueueUpdate,
        event_idx: bool,
        memory: &DmaMemory<P>,
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
            let (queue, mapping) = map(setup, self.max_size, event_idx, memory)?;
            let [descriptors, driver, device] = mapping.areas().ok_or(UpdateError::NotMapped)?;
            let areas = RingAreas { descriptors, driver, device };
            let state = RingState::new(queue, self.record.clone(), areas)?;
            self.enabled = Some(Enabled { state, mapping });
        }
        self.setup = setup;
        Ok(if enables { Updated::Enabled } else { Updated::Unchanged })
    }

    /// RESET_VQUEUE: disables the queue and clears its setup; returns the doorbell for the caller
    /// to close.
    pub fn reset(&mut self) -> Option<LocalPort> {
        (self.setup, self.enabled) = (RingSetup::default(), None);
        Some(self.doorbell.take()?.local)
    }
}

/// Maps a ring.
fn map<P: AccessPlatform>(
    setup: RingSetup,
    max_size: u16,
    event_idx: bool,
    memory: &DmaMemory<P>,
) -> Result<(Queue, RingMapping<P::Pages>), UpdateError> {
    if setup.size == 0 {
        return Err(UpdateError::Size(0));
    }
    let mapping = memory.map_ring(setup.areas())?;
    let mut queue = Queue::new(max_size)?;
    queue.try_set_size(setup.size)?;
    queue.try_set_desc_table_address(GuestAddress(setup.descriptor))?;
    queue.try_set_avail_ring_address(GuestAddress(setup.driver))?;
    queue.try_set_used_ring_address(GuestAddress(setup.device))?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    Ok((queue, mapping))
}
