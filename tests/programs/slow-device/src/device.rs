//! The device's responses.

use protocol::message::{
    BindOutcome, ConfigData, DeviceInfo, FeatureBlocks, Request, Response, ShareOutcome,
    UnshareOutcome, VqueueState, VqueueUpdate,
};
use protocol::status::{DEVICE_NEEDS_RESET, DRIVER_OK, REQUIRED_FEATURES};

/// How many times the driver must send GET_DEVICE_STATUS until a reset is complete.
const QUESTIONS: u32 = 3;
/// Number of entries in the queue.
const QUEUE_SIZE: u32 = 16;

/// An entropy device that returns no data.
#[derive(Debug, Default)]
pub(crate) struct Device {
    status: u32,
    /// Number of GET_DEVICE_STATUS requests until the reset is complete.
    pending: u32,
    queue: Option<VqueueUpdate>,
    features: [u8; 8],
}

impl Device {
    pub(crate) fn new() -> Self {
        Self { features: REQUIRED_FEATURES.to_le_bytes(), ..Self::default() }
    }

    pub(crate) fn answer(&mut self, request: Request<'_>) -> Response<'_> {
        let nothing = |offset| ConfigData { generation: 0, offset, data: &[] };
        match request {
            Request::GetDeviceInfo => Response::GetDeviceInfo(info()),
            Request::GetDeviceFeatures { first, .. } => {
                Response::GetDeviceFeatures(FeatureBlocks::new(first, &self.features))
            }
            Request::SetDriverFeatures(_) => Response::SetDriverFeatures,
            Request::GetConfig { offset, .. } => Response::GetConfig(nothing(offset)),
            Request::SetConfig(config) => Response::SetConfig(nothing(config.offset)),
            Request::GetDeviceStatus => Response::GetDeviceStatus(self.asked()),
            Request::SetDeviceStatus(status) => Response::SetDeviceStatus(self.set(status)),
            Request::GetVqueue { index } => Response::GetVqueue(self.queue(index)),
            Request::SetVqueue(update) => {
                self.queue = Some(update);
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

    /// Handles GET_DEVICE_STATUS; the last one of [`QUESTIONS`] completes a pending reset.
    fn asked(&mut self) -> u32 {
        if self.pending > 0 {
            self.pending -= 1;
            if self.pending == 0 {
                (self.status, self.queue) = (0, None);
                println!("reset complete after {QUESTIONS} questions");
            }
        }
        self.status
    }

    /// Handles SET_DEVICE_STATUS. A reset stays pending for a while. With DRIVER_OK the device
    /// fails to start, and only its status reports that, no event.
    fn set(&mut self, status: u32) -> u32 {
        if status == 0 {
            self.pending = QUESTIONS;
            self.status |= 1;
        } else {
            self.status |= status;
            let starts = status & DRIVER_OK != 0;
            self.status |= if starts { DEVICE_NEEDS_RESET } else { 0 };
        }
        self.status
    }

    fn queue(&self, index: u32) -> VqueueState {
        let setup = self.queue.filter(|_| index == 0);
        VqueueState {
            index,
            max_size: if index == 0 { QUEUE_SIZE } else { 0 },
            size: setup.map_or(0, |setup| setup.size),
            enabled: setup.is_some(),
            descriptor: setup.map_or(0, |setup| setup.descriptor),
            driver: setup.map_or(0, |setup| setup.driver),
            device: setup.map_or(0, |setup| setup.device),
        }
    }
}

fn info() -> DeviceInfo {
    DeviceInfo {
        device_id: 4,
        vendor_id: 0,
        uuid: [0; 16],
        feature_blocks: 2,
        config_size: 0,
        max_virtqueues: 1,
        admin_queue_start: 0,
        admin_queue_count: 0,
    }
}
