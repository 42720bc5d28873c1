//! The block device (virtio 1.3 section 5.2).

mod config;
mod request;
mod target;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::Level;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
};

pub use self::request::SECTOR_SIZE;
use self::request::{BlockRequest, Operation, Status};
pub use self::target::{AccessMode, Target, TargetError};
use super::{DeviceId, DeviceMemory, Fault, Queues, VirtioDevice};
use crate::stats::DeviceStats;

/// Queues offered; the driver uses one a CPU, at most these.
const QUEUES: u16 = 4;
/// Entries in a queue.
const QUEUE_SIZE: u16 = 256;
/// Bytes in the answer to an identity request.
const SERIAL_SIZE: usize = 20;

/// A disk.
pub struct Block {
    target: Target,
    config: [u8; config::SIZE],
    serial: [u8; SERIAL_SIZE],
    stats: Arc<DeviceStats>,
}

impl Block {
    /// A disk on `target` that calls itself `serial`, of which 20 bytes count.
    pub fn new(target: Target, serial: &str, stats: Arc<DeviceStats>) -> Self {
        let config = config::bytes(&target, QUEUES, QUEUE_SIZE);
        let mut name = [0; SERIAL_SIZE];
        name.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        Self { target, config, serial: name, stats }
    }

    /// Does what a request asks; gives the status and the number of data bytes written into its
    /// buffers.
    fn execute<M: DeviceMemory>(
        &mut self,
        request: &BlockRequest,
        memory: &M,
    ) -> Result<(Status, u32), Fault> {
        let outcome = match &request.operation {
            Operation::Read { sector, data } => self.target.read(*sector, data, memory),
            Operation::Write { sector, data } => self.target.write(*sector, data, memory),
            Operation::Flush => self.target.flush(),
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

    fn count(&self, operation: &Operation, status: Status) {
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
        let mut bits = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        if self.target.mode() == AccessMode::ReadOnly {
            bits |= 1 << VIRTIO_BLK_F_RO;
        }
        bits
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES as usize]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_, M>) -> Result<(), Fault> {
        queues.serve_each(index, |request, memory| {
            let request = BlockRequest::parse(request, memory)?;
            let (status, data) = self.execute(&request, memory)?;
            self.count(&request.operation, status);
            Ok(data + request.status.copy_from(memory, &[status as u8])?)
        })
    }
}
