//! The entropy device (virtio 1.3 section 5.4), which fills the driver's buffers with random bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::rand::{GetRandomFlags, getrandom};
use tracing::Level;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::rate::{Limiter, SharedRate};
use super::{DeviceId, DeviceMemory, Fault, QueueContext, Source, VirtioDevice, VirtioRequest};
use crate::stats::DeviceStats;

/// Maximum number of bytes that are generated at once.
const GENERATED: usize = 4096;
/// The only queue (section 5.4.2).
const REQUESTS: usize = 0;
/// Number of entries of the queue.
const QUEUE_SIZE: u16 = 64;
/// Maximum number of bytes for one request, which bounds the work of an iteration. The device may
/// return fewer bytes than the buffers hold, but at least one (section 5.4.6.1).
const MAX_REQUEST_BYTES: u64 = 64 << 10;

/// An entropy device.
pub struct Entropy {
    /// Survives resets, so that a guest gains nothing by a reset.
    limiter: Limiter,
    /// Whether requests wait for the limiter now.
    waits: bool,
    stats: Arc<DeviceStats>,
}

impl Entropy {
    /// A device that returns at most `rate` bytes per second, if there is a limit.
    pub fn new(rate: Arc<SharedRate>, stats: Arc<DeviceStats>) -> Self {
        Self { limiter: Limiter::new(rate), waits: false, stats }
    }

    /// The number of requests that may be served now. Others wait in the ring.
    fn allowance(&mut self) -> Result<usize, Fault> {
        let open = self.limiter.is_open().map_err(|errno| Fault::Host("timer", errno.into()))?;
        if !open && !self.waits {
            DeviceStats::count(&self.stats.waits);
        }
        self.waits = !open;
        if !self.limiter.is_limited() {
            return Ok(usize::MAX);
        }
        // One at a time: its cost is known only after it was served.
        Ok(usize::from(open))
    }
}

impl<M: DeviceMemory> VirtioDevice<M> for Entropy {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn kind(&self) -> &'static str {
        "rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn longest_request(&self) -> u64 {
        MAX_REQUEST_BYTES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    /// It keeps nothing of its driver.
    fn can_be_taken_over(&self) -> bool {
        true
    }

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        let allowance = self.allowance()?;
        if allowance == 0 {
            return Ok(());
        }
        queues.process_some(index, allowance, |request, memory| {
            let written = fill(request, memory, &self.stats)?;
            self.limiter.spend(written.into());
            DeviceStats::count(&self.stats.reads);
            self.stats.bytes_read.fetch_add(written.into(), Ordering::Relaxed);
            Ok(written)
        })
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.limiter.source().into_iter().collect()
    }

    /// Continues: the limiter may be open now.
    fn handle_sources(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        self.process(REQUESTS, queues)
    }
}

/// The kernel's generator. A read of it reaches no end, and waits only while the host starts.
struct Generator;

impl ReadVolatile for Generator {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        into: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut bytes = [0; GENERATED];
        let length = into.len().min(GENERATED);
        let bytes = bytes.get_mut(..length).unwrap_or_default();
        let count = getrandom(&mut *bytes, GetRandomFlags::empty());
        let count = count.map_err(|errno| VolatileMemoryError::IOError(errno.into()))?;
        into.copy_from(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// Fills a request's buffers and returns the number of bytes.
fn fill<M: DeviceMemory>(
    request: &VirtioRequest,
    memory: &M,
    stats: &DeviceStats,
) -> Result<u32, Fault> {
    if request.readable().length() > 0 {
        let reason = "a device-readable buffer in a request for entropy".to_owned();
        return Err(Fault::Chain { head: request.head, reason });
    }
    let length = request.writable().length().min(MAX_REQUEST_BYTES);
    let Some(buffers) = request.writable().split_front(length) else { return Ok(0) };
    for buffer in buffers.writable(memory) {
        match buffer {
            Ok(mut buffer) => {
                let filled = buffer.read_from(&mut Generator);
                filled.map_err(|error| Fault::Host("random generator", error))?;
            }
            Err(Fault::Memory { source, .. }) if memory.is_shortage(&source) => {
                stats.log.line(Level::WARN, format_args!("request failed: {source}"));
                DeviceStats::count(&stats.failed);
                return Ok(0);
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(length as u32)
}
