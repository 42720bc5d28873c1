//! A driver for the disk, without the checks and the limits of a correct one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use protocol::message::{FeatureBlocks, Request, Response, VqueueFlags, VqueueUpdate};
use protocol::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK};
use userspace::Frontend;

use crate::ring::{Data, Ring, SIZE};

/// How long the disk may take for a request.
const LIMIT: Duration = Duration::from_secs(10);

/// A disk with one queue in use.
pub(crate) struct Disk {
    frontend: Frontend,
    /// Dropped after the frontend, which makes the backend unmap it.
    ring: Ring,
}

impl Disk {
    /// Connects the disk, and accepts `features`, whatever the disk offers.
    pub(crate) fn open(device: &str, features: u64) -> Result<Self> {
        let frontend =
            Frontend::open(device).with_context(|| format!("cannot connect {device}"))?;
        let ring = Ring::new(frontend.backend())?;
        let mut disk = Self { frontend, ring };
        let began = ACKNOWLEDGE | DRIVER;
        disk.set_status(began)?;
        let blocks = features.to_le_bytes();
        let accept = Request::SetDriverFeatures(FeatureBlocks::new(0, &blocks));
        disk.frontend.ask(accept, |_| Some(()))?;
        let status = disk.set_status(began | FEATURES_OK)?;
        ensure!(
            status & FEATURES_OK != 0,
            "FEATURES_OK not set: the status is {status:#x} for features {features:#x}"
        );
        disk.set_up_queue()?;
        disk.set_status(began | FEATURES_OK | DRIVER_OK)?;
        Ok(disk)
    }

    fn set_up_queue(&mut self) -> Result<()> {
        let update = VqueueUpdate {
            index: 0,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: SIZE.into(),
            reserved: 0,
            descriptor: self.ring.descriptor_area(),
            driver: self.ring.driver_area(),
            device: self.ring.device_area(),
        };
        self.frontend.ask(Request::SetVqueue(update), |_| Some(()))?;
        // The answer to SET_VQUEUE does not report whether the device enabled the queue [6.3].
        let enabled =
            self.frontend.ask(Request::GetVqueue { index: 0 }, |answer| match answer {
                Response::GetVqueue(state) => Some(state.enabled),
                _ => None,
            })?;
        ensure!(enabled, "the device did not enable the queue");
        Ok(())
    }

    /// Sends a request to the disk, and waits until the disk has finished it.
    pub(crate) fn request(&mut self, data: Data) -> Result<()> {
        self.ring.offer(data)?;
        self.frontend.ring(0)?;
        let end = Instant::now() + LIMIT;
        loop {
            // The wait for this answer paces the loop.
            let status = self.status()?;
            ensure!(
                status & DEVICE_NEEDS_RESET == 0,
                "DEVICE_NEEDS_RESET set: the status is {status:#x}"
            );
            match self.ring.take_used()? {
                Some(0) => return Ok(()),
                Some(status) => bail!("the request failed with status {status}"),
                None if Instant::now() < end => {}
                None => bail!("waited {} s for the request", LIMIT.as_secs()),
            }
        }
    }

    /// The data of the last [`Data::Read`].
    pub(crate) fn data(&self) -> Result<Vec<u8>> {
        self.ring.data()
    }

    fn status(&mut self) -> Result<u32> {
        let status = self.frontend.ask(Request::GetDeviceStatus, |answer| match answer {
            Response::GetDeviceStatus(status) => Some(status),
            _ => None,
        });
        Ok(status?)
    }

    fn set_status(&mut self, status: u32) -> Result<u32> {
        let set = self.frontend.ask(Request::SetDeviceStatus(status), |answer| match answer {
            Response::SetDeviceStatus(status) => Some(status),
            _ => None,
        });
        Ok(set?)
    }
}
