//! Device status bits (virtio 1.3 section 2.1) and the feature bits the transport cares about
//! (section 6).

/// The driver has noticed the device.
pub const ACKNOWLEDGE: u32 = 1;
/// The driver knows how to drive the device.
pub const DRIVER: u32 = 2;
/// The driver is set up and ready.
pub const DRIVER_OK: u32 = 4;
/// The driver has accepted its features, and the device has agreed.
pub const FEATURES_OK: u32 = 8;
/// The device is in a fault that only a reset ends.
pub const DEVICE_NEEDS_RESET: u32 = 64;
/// The driver has given up on the device.
pub const FAILED: u32 = 128;

/// The bits that a driver sets. `SUSPEND` (16) is not among them: its feature is not offered.
pub const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// Bit number of `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u32 = 32;
/// Bit number of `VIRTIO_F_ACCESS_PLATFORM`: the device reaches memory by the platform's mechanism,
/// here by grants only.
pub const F_ACCESS_PLATFORM: u32 = 33;
/// Bit number of `VIRTIO_F_RING_RESET`: the driver may reset one queue by itself.
pub const F_RING_RESET: u32 = 40;

/// The features without which no device of this binding works [6.2].
pub const REQUIRED_FEATURES: u64 = (1 << F_VERSION_1) | (1 << F_ACCESS_PLATFORM);
