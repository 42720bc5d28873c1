//! Commands in the control queue (virtio 1.3 section 5.1.6.5): class, command, data; a status byte.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use crate::device::{DeviceMemory, Fault, VirtioRequest};

/// How a command went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Ack {
    Done = VIRTIO_NET_OK as u8,
    Refused = VIRTIO_NET_ERR as u8,
}

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ControlCommand {
    /// To use so many queue pairs.
    UsePairs(u16),
    /// Something that was not offered, or no command at all.
    Unsupported,
}

impl ControlCommand {
    /// Reads a command, once.
    ///
    /// # Errors
    /// [`Fault::Chain`] for a request without room for the status; [`Fault::Memory`].
    pub(super) fn parse<M: DeviceMemory>(
        request: &VirtioRequest,
        memory: &M,
    ) -> Result<Self, Fault> {
        if request.writable().length() == 0 {
            let reason = "no room for the status of a control command".to_owned();
            return Err(Fault::Chain { head: request.head, reason });
        }
        // As long as the one command that there is.
        let mut bytes = [0; 4];
        if request.readable().length() != bytes.len() as u64 {
            return Ok(Self::Unsupported);
        }
        request.readable().copy_to(memory, &mut bytes)?;
        let [class, command, low, high] = bytes;
        Ok(match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                Self::UsePairs(u16::from_le_bytes([low, high]))
            }
            _ => Self::Unsupported,
        })
    }
}
