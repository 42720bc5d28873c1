//! The entropy device (virtio 1.3 section 5.4): the driver's buffers, filled with random bytes.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::Level;

use super::rate::{Limiter, Rate};
use super::{DeviceId, DeviceMemory, Fault, QueueContext, Source, VirtioDevice, VirtioRequest};
use crate::stats::DeviceStats;

/// The kernel's generator; reads of it neither wait nor end.
const GENERATOR: &str = "/dev/urandom";
/// The only queue (section 5.4.2).
const REQUESTS: usize = 0;
/// Entries in the queue.
const QUEUE_SIZE: u16 = 64;
/// Most bytes a request is given: the device may give fewer than there is room for, at least one
/// (section 5.4.6.1). Bounds a turn's work.
const MAX_REQUEST_BYTES: u64 = 64 << 10;

/// Why an entropy device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    /// The generator.
    #[error("cannot open {GENERATOR}")]
    Generator(#[source] io::Error),
    /// The timer that a rate asks for.
    #[error("cannot make a timer")]
    Timer(#[from] nix::Error),
}

/// An entropy device.
pub struct Entropy {
    generator: File,
    /// Kept over resets: a guest gains nothing by one.
    limiter: Option<Limiter>,
    /// Whether the limiter holds it up now.
    waits: bool,
    stats: Arc<DeviceStats>,
}

impl Entropy {
    /// A device that gives at most `rate`, if there is one.
    ///
    /// # Errors
    /// [`EntropyError`].
    pub fn open(rate: Option<Rate>, stats: Arc<DeviceStats>) -> Result<Self, EntropyError> {
        let generator = File::open(GENERATOR).map_err(EntropyError::Generator)?;
        let limiter = rate.map(Limiter::new).transpose()?;
        Ok(Self { generator, limiter, waits: false, stats })
    }

    /// How many requests may be served now. Others wait in the ring.
    fn allowance(&mut self) -> Result<usize, Fault> {
        let Some(limiter) = &mut self.limiter else { return Ok(usize::MAX) };
        let open = limiter.is_open().map_err(|errno| Fault::Host("timer", errno.into()))?;
        if !open && !self.waits {
            DeviceStats::count(&self.stats.waits);
        }
        self.waits = !open;
        // One, since what it costs is known only when it has been looked at.
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

    fn process(&mut self, index: usize, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        let allowance = self.allowance()?;
        if allowance == 0 {
            return Ok(());
        }
        queues.process_some(index, allowance, |request, memory| {
            let written = fill(&mut self.generator, request, memory, &self.stats)?;
            self.limiter.iter_mut().for_each(|limiter| limiter.spend(written.into()));
            DeviceStats::count(&self.stats.reads);
            self.stats.bytes_read.fetch_add(written.into(), Ordering::Relaxed);
            Ok(written)
        })
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.limiter.iter().map(Limiter::source).collect()
    }

    /// More may be given now.
    fn handle_sources(&mut self, queues: &mut QueueContext<'_, M>) -> Result<(), Fault> {
        self.process(REQUESTS, queues)
    }
}

/// Fills a request's buffers; gives the number of bytes.
fn fill<M: DeviceMemory>(
    generator: &mut File,
    request: &VirtioRequest,
    memory: &M,
    stats: &DeviceStats,
) -> Result<u32, Fault> {
    if request.readable().length() > 0 {
        let reason = "a device-readable buffer in a request for entropy".to_owned();
        return Err(Fault::Chain { head: request.head, reason });
    }
    let length = request.writable().length().min(MAX_REQUEST_BYTES);
    let Some(room) = request.writable().split_front(length) else { return Ok(0) };
    for buffer in room.writable(memory) {
        match buffer {
            Ok(mut buffer) => {
                buffer.read_from(generator).map_err(|error| Fault::Host(GENERATOR, error))?;
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
