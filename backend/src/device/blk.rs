//! The block device (virtio 1.3 section 5.2).

mod config;
mod image;
mod request;
mod target;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::Level;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

pub use self::request::SECTOR_SIZE;
use self::request::{BlockRequest, Operation, Status};
pub use self::target::{AccessMode, Target, TargetError};
use super::{DeviceId, DeviceMemory, Fault, Queues, Source, VirtioDevice};
use crate::stats::DeviceStats;

/// Queues offered; the driver uses one a CPU, at most these.
const QUEUES: u16 = 4;
/// Entries in a queue.
const QUEUE_SIZE: u16 = 512;
/// Bytes of a request's status.
const STATUS_SIZE: u32 = 1;
/// Bytes in the answer to an identity request.
const SERIAL_SIZE: usize = 20;

/// Whether a guest may give storage back: `discard` in its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Discard is not offered, and zeros are written.
    Refused,
    /// Discard and write-zeroes punch holes.
    Allowed,
}

/// A disk.
pub struct Block {
    target: Target,
    discard: Discard,
    config: [u8; config::SIZE],
    config_changed: bool,
    serial: [u8; SERIAL_SIZE],
    stats: Arc<DeviceStats>,
}

impl Block {
    /// A disk on `target` that calls itself `serial`, of which 20 bytes count.
    pub fn new(target: Target, discard: Discard, serial: &str, stats: Arc<DeviceStats>) -> Self {
        let config = config::bytes(&target, QUEUES, QUEUE_SIZE);
        let mut name = [0; SERIAL_SIZE];
        name.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        Self { target, discard, config, config_changed: false, serial: name, stats }
    }

    /// Does what a request asks; gives the status and the number of data bytes written into its
    /// buffers.
    fn execute<M: DeviceMemory>(
        &mut self,
        request: &BlockRequest<'_>,
        memory: &M,
    ) -> Result<(Status, u32), Fault> {
        let outcome = match &request.operation {
            Operation::Read { sector, data } => self.target.read(*sector, *data, memory),
            Operation::Write { sector, data } => self.target.write(*sector, *data, memory),
            Operation::Flush => self.target.flush(),
            Operation::Discard(_) if self.discard == Discard::Refused => {
                Err(TargetError::Unsupported)
            }
            Operation::Discard(ranges) => {
                ranges.iter().try_for_each(|range| self.target.discard(range.sector, range.sectors))
            }
            Operation::WriteZeroes(ranges) => ranges.iter().try_for_each(|range| {
                let unmap = range.unmap() && self.discard == Discard::Allowed;
                self.target.write_zeroes(range.sector, range.sectors, unmap)
            }),
            Operation::GetId { data } => {
                let written = data.copy_from(memory, &self.serial);
                return written.map(|count| (Status::Ok, count));
            }
            Operation::Unsupported => Err(TargetError::Unsupported),
        };
        match outcome {
            Ok(()) => Ok((Status::Ok, request.operation.bytes_in())),
            Err(TargetError::Guest(Fault::Memory { source, .. }))
                if memory.is_shortage(&source) =>
            {
                self.stats.log.line(Level::WARN, format_args!("request failed: {source}"));
                Ok((Status::IoError, 0))
            }
            Err(TargetError::Guest(fault)) => Err(fault),
            Err(TargetError::Unsupported) => Ok((Status::Unsupported, 0)),
            Err(error) => {
                self.stats.log.line(Level::WARN, format_args!("request failed: {error}"));
                Ok((Status::IoError, 0))
            }
        }
    }

    fn count(&self, operation: &Operation<'_>, status: Status) {
        if status != Status::Ok {
            DeviceStats::count(&self.stats.failed);
            return;
        }
        let add = |counter: &std::sync::atomic::AtomicU64, bytes| {
            counter.fetch_add(bytes, Ordering::Relaxed);
        };
        match operation {
            Operation::Read { data, .. } => {
                DeviceStats::count(&self.stats.reads);
                add(&self.stats.bytes_read, data.length());
            }
            Operation::Write { data, .. } => {
                DeviceStats::count(&self.stats.writes);
                add(&self.stats.bytes_written, data.length());
            }
            Operation::Flush => DeviceStats::count(&self.stats.flushes),
            Operation::Discard(_) | Operation::WriteZeroes(_) => {
                DeviceStats::count(&self.stats.discards);
            }
            Operation::GetId { .. } => DeviceStats::count(&self.stats.identities),
            Operation::Unsupported => {}
        }
    }
}

impl<M: DeviceMemory> VirtioDevice<M> for Block {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn kind(&self) -> &'static str {
        "blk"
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        let by_mode = match (self.target.mode(), self.discard) {
            (AccessMode::ReadOnly, _) => 1 << VIRTIO_BLK_F_RO,
            (AccessMode::ReadWrite, Discard::Refused) => 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            (AccessMode::ReadWrite, Discard::Allowed) => {
                1 << VIRTIO_BLK_F_WRITE_ZEROES | 1 << VIRTIO_BLK_F_DISCARD
            }
        };
        always | by_mode
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES as usize]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn serves_driver_alone(&self) -> bool {
        true
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_, M>) -> Result<(), Fault> {
        queues.serve_each(index, |request, memory| {
            let request = BlockRequest::parse(request, memory)?;
            // Before the data: a driver whose data finds no room is told so.
            let place = request.status.writable(memory).next().transpose()?;
            let (status, data) = self.execute(&request, memory)?;
            self.count(&request.operation, status);
            place.into_iter().for_each(|mut byte| byte.copy_from(&[status as u8]));
            memory.copied(STATUS_SIZE.into());
            Ok(data + STATUS_SIZE)
        })
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.target.size_source().into_iter().collect()
    }

    /// The target's size may have changed: the guest is told by its configuration.
    fn wake(&mut self, _queues: &mut Queues<'_, M>) -> Result<(), Fault> {
        match self.target.refresh() {
            Ok(true) => {
                self.config = config::bytes(&self.target, QUEUES, QUEUE_SIZE);
                self.config_changed = true;
                let sectors = self.target.sectors();
                self.stats.log.line(Level::INFO, format_args!("disk has {sectors} sectors now"));
            }
            Ok(false) => {}
            Err(error) => {
                self.stats.log.line(Level::WARN, format_args!("size not known: {error}"));
            }
        }
        Ok(())
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }
}
