//! XenStore's wire protocol (Xen `public/io/xs_wire.h`), as `/dev/xen/xenbus` speaks it: each
//! message is a header of four `u32` (type, request id, transaction id, length) and a payload.

/// Path of the XenStore device.
pub const DEVICE: &str = "/dev/xen/xenbus";
/// `sizeof(struct xsd_sockmsg)`.
pub const HEADER_SIZE: usize = 16;
/// `XENSTORE_PAYLOAD_MAX`.
pub const PAYLOAD_MAX: usize = 4096;

/// The values of `enum xsd_sockmsg_type` that this project uses.
pub mod message_type {
    /// List the names of a node's children.
    pub const DIRECTORY: u32 = 1;
    /// Read a node's value.
    pub const READ: u32 = 2;
    /// Register a watch.
    pub const WATCH: u32 = 4;
    /// Begin a transaction.
    pub const TRANSACTION_START: u32 = 6;
    /// End a transaction.
    pub const TRANSACTION_END: u32 = 7;
    /// Write a node.
    pub const WRITE: u32 = 11;
    /// Create a node, with an empty value, if it does not exist.
    pub const MKDIR: u32 = 12;
    /// Remove a node and all nodes below it.
    pub const RM: u32 = 13;
    /// Set the permissions of a node.
    pub const SET_PERMS: u32 = 14;
    /// A watch fired.
    pub const WATCH_EVENT: u32 = 15;
    /// The request failed.
    pub const ERROR: u32 = 16;
    /// As `DIRECTORY`, but lists names from an offset on, as many as fit.
    pub const DIRECTORY_PART: u32 = 22;
}
