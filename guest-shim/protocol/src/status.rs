//! Device status bits (virtio 1.3 section 2.1), and the feature bits that the transport itself uses
//! (section 6).

/// The guest has found the device.
pub const ACKNOWLEDGE: u32 = 1;
/// The guest has a driver for the device.
pub const DRIVER: u32 = 2;
/// The driver is set up and ready to drive the device.
pub const DRIVER_OK: u32 = 4;
/// The driver has chosen its features, and the device accepts them.
pub const FEATURES_OK: u32 = 8;
/// The device has a fault from which only a reset recovers [6.5].
pub const DEVICE_NEEDS_RESET: u32 = 64;
/// The driver has given the device up.
pub const FAILED: u32 = 128;

/// The bits that a driver may set. `SUSPEND` (16) is not among them, because the device does not
/// offer its feature [6.8].
pub const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// Bit number of `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u32 = 32;
/// Bit number of `VIRTIO_F_ACCESS_PLATFORM`: the device reaches memory through the platform's
/// mechanism, which is grants in this binding.
pub const F_ACCESS_PLATFORM: u32 = 33;
/// Bit number of `VIRTIO_F_RING_RESET`: the driver may reset a single queue [6.7].
pub const F_RING_RESET: u32 = 40;

/// The features that a device must offer and a driver must accept, as a mask [6.2].
pub const REQUIRED_FEATURES: u64 = (1 << F_VERSION_1) | (1 << F_ACCESS_PLATFORM);
