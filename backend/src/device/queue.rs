//! Serving a queue: the loop that all devices share.

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::{DeviceMemory, Fault, Request, VirtioDevice};

/// Requests taken from a ring at once: their pages are mapped and unmapped together, and other queues
/// and messages get their turn between two batches.
const BATCH: usize = 32;

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The driver wants to hear of it.
    pub notify: bool,
    /// Something is still waiting in the ring.
    pub more: bool,
}

/// Serves up to a batch of requests.
///
/// # Errors
/// [`Fault`]; what was served before it has been given back.
pub fn serve<M: DeviceMemory>(
    device: &mut dyn VirtioDevice<M>,
    number: usize,
    queue: &mut Queue,
    memory: &mut M,
) -> Result<Turn, Fault> {
    let (batch, mut fault) = take(queue, memory);
    if batch.is_empty() && fault.is_none() {
        return Ok(Turn { notify: false, more: queue.enable_notification(memory)? });
    }
    memory.prepare(&mut batch.iter().flat_map(Request::buffers));
    let mut done = Vec::with_capacity(batch.len());
    for request in &batch {
        match device.serve(number, request, memory) {
            Ok(written) => done.push((request.head, written)),
            Err(first) => {
                fault = Some(first);
                break;
            }
        }
    }
    // Before the driver hears of it: a grant it gets back must not be mapped any more.
    memory.release();
    for (head, written) in done {
        queue.add_used(memory, head, written)?;
    }
    match fault {
        Some(fault) => Err(fault),
        None => Ok(Turn { notify: queue.needs_notification(memory)?, more: true }),
    }
}

/// Copies up to a batch of requests out of the ring, up to the first that is malformed.
fn take<M: DeviceMemory>(queue: &mut Queue, memory: &M) -> (Vec<Request>, Option<Fault>) {
    let mut batch = Vec::new();
    let chains = match queue.iter(memory) {
        Ok(chains) => chains,
        Err(error) => return (batch, Some(error.into())),
    };
    for chain in chains.take(BATCH) {
        match Request::collect(chain.head_index(), chain, || memory.last_fault()) {
            Ok(request) => batch.push(request),
            Err(fault) => return (batch, Some(fault)),
        }
    }
    (batch, None)
}
