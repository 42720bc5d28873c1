//! A disk without sectors. It answers every request and serves no queue.

use protocol::message::{
    BindOutcome, ConfigData, DeviceInfo, FeatureBlocks, Request, Response, ShareOutcome,
    UnshareOutcome, VqueueState,
};
use protocol::status::{DRIVER_OK, F_ACCESS_PLATFORM, F_VERSION_1};

const BLOCK: u32 = 2;
const CONFIG: [u8; 64] = [0; 64];
const FEATURES: [u8; 8] = (1u64 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM).to_le_bytes();
const QUEUE_SIZE: u32 = 16;

/// The disk's state.
pub(crate) struct Disk {
    changes: bool,
    generation: u32,
    status: u32,
    queue: VqueueState,
}

impl Disk {
    /// Creates a disk. If `changes`, each read of the configuration finds another generation.
    pub(crate) fn new(changes: bool) -> Self {
        Self { changes, generation: 0, status: 0, queue: no_queue(0) }
    }

    /// Whether the driver has set DRIVER_OK.
    pub(crate) fn is_running(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// The disk's response to a request.
    pub(crate) fn answer<'a>(&mut self, request: &Request<'a>) -> Response<'a> {
        match *request {
            Request::GetDeviceInfo => Response::GetDeviceInfo(INFO),
            Request::GetDeviceFeatures { first, count } => {
                let bytes = FEATURES.get(..4 * count as usize).unwrap_or(&FEATURES);
                Response::GetDeviceFeatures(FeatureBlocks::new(first, bytes))
            }
            Request::SetDriverFeatures(_) => Response::SetDriverFeatures,
            Request::GetConfig { offset, size } => Response::GetConfig(self.config(offset, size)),
            Request::SetConfig(config) => Response::SetConfig(config),
            Request::GetDeviceStatus => Response::GetDeviceStatus(self.status),
            Request::SetDeviceStatus(status) => {
                self.status = status;
                Response::SetDeviceStatus(status)
            }
            Request::GetVqueue { index } if index == self.queue.index => {
                Response::GetVqueue(self.queue)
            }
            Request::GetVqueue { index } => Response::GetVqueue(no_queue(index)),
            Request::SetVqueue(update) => {
                self.queue = VqueueState { size: update.size, enabled: true, ..self.queue };
                Response::SetVqueue
            }
            Request::ResetVqueue { .. } => Response::ResetVqueue,
            Request::GetShm { shmid } => Response::GetShm { shmid, length: 0, address: 0 },
            Request::Ping(number) => Response::Ping(number),
            Request::BindQueue { index, .. } => {
                Response::BindQueue { index, outcome: BindOutcome::Refused }
            }
            Request::SharePages { first, .. } => {
                Response::SharePages { first, outcome: ShareOutcome::Refused }
            }
            Request::UnsharePages { first, .. } => {
                Response::UnsharePages { first, outcome: UnshareOutcome::Refused }
            }
        }
    }

    fn config<'a>(&mut self, offset: u32, size: u32) -> ConfigData<'a> {
        self.generation = self.generation.wrapping_add(self.changes.into());
        let from = offset as usize;
        let data = CONFIG.get(from..from + size as usize).unwrap_or(&[]);
        ConfigData { generation: self.generation, offset, data }
    }
}

const INFO: DeviceInfo = DeviceInfo {
    device_id: BLOCK,
    vendor_id: 0,
    uuid: [0; 16],
    feature_blocks: 2,
    config_size: CONFIG.len() as u32,
    max_virtqueues: 1,
    admin_queue_start: 0,
    admin_queue_count: 0,
};

const fn no_queue(index: u32) -> VqueueState {
    let max_size = if index == 0 { QUEUE_SIZE } else { 0 };
    VqueueState { index, max_size, size: 0, enabled: false, descriptor: 0, driver: 0, device: 0 }
}
