//! Commands in the control queue (virtio 1.3 section 5.1.6.5): class, command, data, status byte.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::device::{DeviceMemory, Fault, VirtioRequest};

/// The status of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Ack {
    Done = VIRTIO_NET_OK as u8,
    Refused = VIRTIO_NET_ERR as u8,
}

/// A command of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ControlCommand {
    /// Use this number of queue pairs.
    UsePairs(u16),
    /// The guest has this MAC address, which is not checked.
    SetMac([u8; 6]),
    /// The guest has announced itself, or will.
    Announced,
    /// A command whose feature is not offered, or a malformed one.
    Unsupported,
}

impl ControlCommand {
    /// Reads a command, once.
    ///
    /// # Errors
    /// [`Fault::Chain`] for a request without a buffer for the status; [`Fault::Memory`].
    pub(super) fn parse<M: DeviceMemory>(
        request: &VirtioRequest,
        memory: &M,
    ) -> Result<Self, Fault> {
        if request.writable().length() == 0 {
            let reason = "no buffer for the status of a control command".to_owned();
            return Err(Fault::Chain { head: request.head, reason });
        }
        // The length of the longest supported command.
        let mut bytes = [0; 8];
        let length = request.readable().length();
        let Some(given) = usize::try_from(length).ok().and_then(|length| bytes.get_mut(..length))
        else {
            return Ok(Self::Unsupported);
        };
        request.readable().copy_to(memory, given)?;
        let [class, command, d0, d1, d2, d3, d4, d5] = bytes;
        Ok(match (u32::from(class), u32::from(command), length) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, 4) => {
                Self::UsePairs(u16::from_le_bytes([d0, d1]))
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, 8) => {
                Self::SetMac([d0, d1, d2, d3, d4, d5])
            }
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, 2) => Self::Announced,
            _ => Self::Unsupported,
        })
    }
}
