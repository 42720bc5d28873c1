//! What a driver has set up by messages, as a record holds it.

use serde::{Deserialize, Serialize};

/// The state of a connected device, as JSON in its record. Its fields belong to all versions of the
/// record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverSetup {
    /// The connection that the driver set up.
    pub connection: ConnectionId,
    /// The device status.
    pub status: u32,
    /// The feature bits that the driver accepted.
    pub features: u64,
    /// The configuration's generation.
    pub generation: u32,
    /// The queues by number.
    pub queues: Vec<QueueSetup>,
    /// The pages that the driver shared.
    pub pool: Vec<PoolChunk>,
    /// The answer to the last message that changed the state.
    pub answered: Option<Answered>,
    /// Resets of queues that are not answered.
    pub owed_resets: Vec<OwedReset>,
}

/// What distinguishes a connection from all others of the same path in XenStore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionId {
    /// The domain's `vm` path, which has its UUID: domain ids return.
    pub vm: Option<String>,
    /// The frontend's directory.
    pub frontend: String,
    /// Grant of the message page.
    pub page: u32,
    /// The guest's port of the message page.
    pub port: u32,
}

/// The set-up of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor table.
    pub descriptor: u64,
    /// Address of the driver area.
    pub driver: u64,
    /// Address of the device area.
    pub device: u64,
    /// Whether the queue is enabled.
    pub enabled: bool,
    /// The guest's port of the doorbell.
    pub doorbell: Option<u32>,
}

/// Pages that the driver shared with one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolChunk {
    /// Number of the first page in the pool.
    pub first: u32,
    /// Number of pages.
    pub count: u32,
    /// Grant of the first page; those of the others follow it.
    pub reference: u32,
}

/// The answer to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Index of the message in the queue from the driver.
    pub message: u32,
    /// The response, as it goes to the driver.
    pub response: Vec<u8>,
}

/// A reset of a queue whose response waits for storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwedReset {
    /// The message's token.
    pub token: u16,
    /// The queue.
    pub queue: u32,
}
