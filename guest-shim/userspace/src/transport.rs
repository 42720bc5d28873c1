//! The transport of virtio-drivers for a device on the Xen bus.

use std::cell::RefCell;

use protocol::message::{
    ConfigData, DeviceInfo, FeatureBlocks, Request, Response, VqueueFlags, VqueueState,
    VqueueUpdate,
};
use protocol::status::{DEVICE_NEEDS_RESET, F_ACCESS_PLATFORM, F_RING_RESET};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::frontend::Frontend;
use crate::messages::{MessageError, status_of};
use xen::Causes;

/// A device on the Xen bus. If an operation fails that cannot return an error in virtio-drivers,
/// the transport logs the failure. A failed query returns 0 or `false`; after any other failure the
/// device's status has DEVICE_NEEDS_RESET until the next reset.
pub struct XenTransport {
    frontend: RefCell<Frontend>,
    device_type: DeviceType,
    /// The bit of `VIRTIO_F_RING_RESET` if the device offers it, else 0.
    queue_reset: u64,
    broken: bool,
}

impl XenTransport {
    /// Creates the transport over a connected frontend.
    ///
    /// # Errors
    /// [`MessageError`] if GET_DEVICE_INFO fails; [`MessageError::Mismatch`] also for a device type
    /// that virtio-drivers does not know.
    pub fn new(mut frontend: Frontend) -> Result<Self, MessageError> {
        let info: DeviceInfo = frontend.ask(Request::GetDeviceInfo, |answer| match answer {
            Response::GetDeviceInfo(info) => Some(info),
            _ => None,
        })?;
        let device_type =
            DeviceType::try_from(info.device_id).map_err(|_| MessageError::Mismatch)?;
        Ok(Self { frontend: RefCell::new(frontend), device_type, queue_reset: 0, broken: false })
    }

    fn ask<R>(
        &self,
        request: Request<'_>,
        take: impl FnOnce(Response<'_>) -> Option<R>,
    ) -> Option<R> {
        let answer = self.frontend.borrow_mut().ask(request, take);
        answer
            .inspect_err(|error| {
                tracing::error!(?request, "device: request failed: {}", Causes(error))
            })
            .ok()
    }

    fn queue(&self, queue: u16) -> Option<VqueueState> {
        self.ask(Request::GetVqueue { index: queue.into() }, |answer| match answer {
            Response::GetVqueue(state) => Some(state),
            _ => None,
        })
    }

    fn checked(&mut self, done: Result<(), MessageError>) {
        if let Err(error) = done {
            tracing::error!("device: operation failed, reset required: {}", Causes(&error));
            self.broken = true;
        }
    }
}

impl Transport for XenTransport {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        let features =
            self.ask(Request::GetDeviceFeatures { first: 0, count: 2 }, |answer| match answer {
                Response::GetDeviceFeatures(blocks) => Some(blocks.low_bits()),
                _ => None,
            });
        let features = features.unwrap_or(0);
        self.queue_reset = features & 1 << F_RING_RESET;
        features
    }

    /// Adds `VIRTIO_F_ACCESS_PLATFORM` and, if offered, `VIRTIO_F_RING_RESET` to the driver's
    /// features. Drivers need not know them: this transport's addresses are grants, which are the
    /// platform's mechanism, and [`Transport::queue_unset`] resets a queue.
    fn write_driver_features(&mut self, features: u64) {
        let bytes = (features | 1 << F_ACCESS_PLATFORM | self.queue_reset).to_le_bytes();
        let blocks = FeatureBlocks::new(0, &bytes);
        if self.ask(Request::SetDriverFeatures(blocks), |_| Some(())).is_none() {
            self.broken = true;
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.queue(queue).map_or(0, |state| state.max_size)
    }

    fn notify(&mut self, queue: u16) {
        let rung = self.frontend.get_mut().ring(queue);
        self.checked(rung);
    }

    fn get_status(&self) -> DeviceStatus {
        let status = self.ask(Request::GetDeviceStatus, status_of);
        let broken = self.broken || self.frontend.borrow_mut().messages().needs_reset();
        let broken = if broken { DEVICE_NEEDS_RESET } else { 0 };
        DeviceStatus::from_bits_retain(status.unwrap_or(DEVICE_NEEDS_RESET) | broken)
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            self.broken = false;
            let reset = self.frontend.get_mut().messages().reset();
            return self.checked(reset);
        }
        let set = self.ask(Request::SetDeviceStatus(status.bits()), status_of);
        // virtio-drivers does not check whether the device accepted the features or could start.
        let unfit = |set: u32| status.bits() & !set != 0 || set & DEVICE_NEEDS_RESET != 0;
        let refused = set.is_none_or(unfit);
        if refused {
            tracing::error!(?status, ?set, "device: status refused, reset required");
            self.broken = true;
        }
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let update = VqueueUpdate {
            index: queue.into(),
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size,
            reserved: 0,
            descriptor: descriptors,
            driver: driver_area,
            device: device_area,
        };
        let set = self.ask(Request::SetVqueue(update), |_| Some(()));
        // The answer to SET_VQUEUE does not report whether the device enabled the queue [6.3].
        if set.is_none() || !self.queue(queue).is_some_and(|state| state.enabled) {
            tracing::error!(queue, "device: queue refused, reset required");
            self.broken = true;
            return;
        }
        let bound = self.frontend.get_mut().messages().bind(queue);
        self.checked(bound);
    }

    /// Resets the queue, or the whole device if it cannot reset a single queue. Either way the
    /// queue's memory belongs to the driver afterwards.
    fn queue_unset(&mut self, queue: u16) {
        if self.queue_reset == 0 {
            return self.set_status(DeviceStatus::empty());
        }
        let reset = self.ask(Request::ResetVqueue { index: queue.into() }, |_| Some(()));
        self.broken |= reset.is_none();
        self.frontend.get_mut().messages().unbind(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.queue(queue).is_some_and(|state| state.enabled)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let told = self.frontend.get_mut().messages().take_told();
        let told = told.unwrap_or_else(|error| {
            tracing::error!("device: receive failed, reset required: {}", Causes(&error));
            self.broken = true;
            Default::default()
        });
        let mut status = InterruptStatus::empty();
        status.set(InterruptStatus::QUEUE_INTERRUPT, told.used);
        status.set(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT, told.config);
        status
    }

    fn read_config_generation(&self) -> u32 {
        self.frontend.borrow_mut().messages().generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        let size = size_of::<T>();
        if size > self.frontend.borrow_mut().messages().max_config_bytes() {
            return Err(Error::ConfigSpaceTooSmall);
        }
        let request = Request::GetConfig { offset: offset as u32, size: size as u32 };
        let read = self.ask(request, |answer| match answer {
            Response::GetConfig(ConfigData { data, .. }) if data.len() == size => {
                value.as_mut_bytes().copy_from_slice(data);
                Some(())
            }
            _ => None,
        });
        read.map(|()| value).ok_or(Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        let data = value.as_bytes();
        // The baseline profile requires 0 as the generation [6.6].
        let config = ConfigData { generation: 0, offset: offset as u32, data };
        let written = self.ask(Request::SetConfig(config), |answer| match answer {
            Response::SetConfig(ConfigData { data, .. }) if !data.is_empty() => Some(()),
            _ => None,
        });
        written.ok_or(Error::ConfigSpaceTooSmall)
    }
}

impl Drop for XenTransport {
    /// Resets the device, so that it holds no queue or buffer when their pages are freed [6.4].
    fn drop(&mut self) {
        self.set_status(DeviceStatus::empty());
    }
}
