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
use self::request::{BlockRequest, Operation, SERIAL_SIZE, Status};
pub use self::target::{AccessMode, Caching, Target, TargetError};
use super::{
    Answers, BATCH, DeviceId, DeviceMemory, Fault, Moved, Queues, Request, Source, Transfers,
    VirtioDevice, Writable,
};
use crate::stats::DeviceStats;

/// Queues offered; the driver uses one a CPU, at most these.
const QUEUES: u16 = 4;
/// Entries in a queue.
const QUEUE_SIZE: u16 = 512;
/// Bytes of a request's status.
const STATUS_SIZE: u32 = 1;

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
    transfers: Transfers,
    stats: Arc<DeviceStats>,
}

/// A request that was taken apart, on its way through a batch.
struct Parsed<'r, 'm> {
    request: BlockRequest<'r>,
    /// Where the status goes.
    place: Option<Writable<'m>>,
    /// What was found wrong with its data before any was moved.
    wrong: Option<TargetError>,
}

impl<'r, 'm> Parsed<'r, 'm> {
    /// Before the data: a driver whose data finds no room is told so.
    fn new<M: DeviceMemory>(request: &'r Request, memory: &'m M) -> Result<Self, Fault> {
        let request = BlockRequest::parse(request, memory)?;
        let place = request.status.writable(memory).next().transpose()?;
        Ok(Self { request, place, wrong: None })
    }
}

impl Block {
    /// A disk on `target` that calls itself `serial`, of which 20 bytes count.
    pub fn new(target: Target, discard: Discard, serial: &str, stats: Arc<DeviceStats>) -> Self {
        let config = config::bytes(&target, QUEUES, QUEUE_SIZE);
        let mut name = [0; SERIAL_SIZE];
        name.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        let transfers = Transfers::default();
        Self { target, discard, config, config_changed: false, serial: name, transfers, stats }
    }

    /// Serves a batch. What reads and writes move is moved together first, if that can be.
    fn serve_batch<M: DeviceMemory>(
        &mut self,
        requests: &[Request],
        memory: &M,
        answers: &mut Answers<'_>,
    ) -> Result<(), Fault> {
        let mut batch = [const { None }; BATCH];
        let mut fault = None;
        for (place, request) in batch.iter_mut().zip(requests) {
            match Parsed::new(request, memory) {
                Ok(parsed) => *place = Some(parsed),
                Err(first) => {
                    fault = Some(first);
                    break;
                }
            }
        }
        let moved = self.transfer(&mut batch, memory);
        for (number, (request, parsed)) in
            requests.iter().zip(batch.into_iter().flatten()).enumerate()
        {
            let Parsed { request: BlockRequest { operation, .. }, place, wrong } = parsed;
            let outcome = match wrong {
                Some(wrong) => Err(wrong),
                None if moved.has(number) => Ok(()),
                None => self.execute(&operation, memory),
            };
            let status = self.status(outcome, memory)?;
            self.count(&operation, status);
            place.into_iter().for_each(|mut byte| byte.copy_from(&[status as u8]));
            memory.copied(STATUS_SIZE.into());
            let data = if status == Status::Ok { operation.bytes_in() } else { 0 };
            answers.push(request, data + STATUS_SIZE);
        }
        fault.map_or(Ok(()), Err)
    }

    /// Moves the data of reads and writes together, up to the first with which something is wrong.
    fn transfer<M: DeviceMemory>(
        &mut self,
        batch: &mut [Option<Parsed<'_, '_>>],
        memory: &M,
    ) -> Moved {
        let mut transfers = self.transfers.batch();
        if batch.iter().flatten().nth(1).is_some() && self.target.has_file() {
            for (number, parsed) in batch.iter_mut().flatten().enumerate() {
                let operation = &parsed.request.operation;
                if let Err(wrong) = self.target.add(number, operation, memory, &mut transfers) {
                    parsed.wrong = Some(wrong);
                    break;
                }
            }
        }
        self.target.run(transfers)
    }

    /// Does what a request asks.
    fn execute<M: DeviceMemory>(
        &mut self,
        operation: &Operation<'_>,
        memory: &M,
    ) -> Result<(), TargetError> {
        match operation {
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
            Operation::GetId { data } => Ok(data.copy_from(memory, &self.serial).map(drop)?),
            Operation::Unsupported => Err(TargetError::Unsupported),
        }
    }

    /// What the driver is told of an outcome. A fault that is the guest's own costs it the device.
    fn status<M: DeviceMemory>(
        &self,
        outcome: Result<(), TargetError>,
        memory: &M,
    ) -> Result<Status, Fault> {
        match outcome {
            Ok(()) => Ok(Status::Ok),
            Err(TargetError::Guest(Fault::Memory { source, .. }))
                if memory.is_shortage(&source) =>
            {
                self.stats.log.line(Level::WARN, format_args!("request failed: {source}"));
                Ok(Status::IoError)
            }
            Err(TargetError::Guest(fault)) => Err(fault),
            Err(TargetError::Unsupported) => Ok(Status::Unsupported),
            Err(error) => {
                self.stats.log.line(Level::WARN, format_args!("request failed: {error}"));
                Ok(Status::IoError)
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

    fn longest_request(&self) -> u64 {
        request::LONGEST
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
        queues.serve_together(index, BATCH, |requests, memory, answers| {
            self.serve_batch(requests, memory, answers)
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
