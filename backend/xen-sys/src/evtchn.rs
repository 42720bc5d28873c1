//! `/dev/xen/evtchn` (Linux `include/uapi/xen/evtchn.h`). A read returns the pending ports as
//! `u32`s and masks them; a write of ports unmasks them.

use crate::ioctl_number;

/// Path of the event channel device.
pub const DEVICE: &str = "/dev/xen/evtchn";

const fn number(number: u8, size: usize) -> u64 {
    ioctl_number(b'E', number, size)
}

/// `struct ioctl_evtchn_bind_interdomain`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BindInterdomain {
    /// The domain that allocated the port.
    pub remote_domain: u32,
    /// The port, as that domain numbers it.
    pub remote_port: u32,
}

/// `struct ioctl_evtchn_bind_unbound_port`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BindUnboundPort {
    /// The domain that may bind the port.
    pub remote_domain: u32,
}

/// `struct ioctl_evtchn_unbind` and `struct ioctl_evtchn_notify`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The local port.
    pub port: u32,
}

/// `struct ioctl_evtchn_restrict_domid`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RestrictDomid {
    /// The only domain that the open file can bind ports to from then on.
    pub domid: u16,
}

/// The number of [`bind_interdomain`].
pub const BIND_INTERDOMAIN: u64 = number(1, size_of::<BindInterdomain>());
/// The number of [`unbind`].
pub const UNBIND: u64 = number(3, size_of::<Port>());
/// The number of [`notify`].
pub const NOTIFY: u64 = number(4, size_of::<Port>());

nix::ioctl_write_ptr_bad!(
    /// `IOCTL_EVTCHN_BIND_INTERDOMAIN`: returns the local port.
    bind_interdomain,
    BIND_INTERDOMAIN,
    BindInterdomain
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_EVTCHN_BIND_UNBOUND_PORT`: returns the local port.
    bind_unbound_port,
    number(2, size_of::<BindUnboundPort>()),
    BindUnboundPort
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_EVTCHN_UNBIND`: closes a local port.
    unbind,
    UNBIND,
    Port
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_EVTCHN_NOTIFY`: sends an event through a local port.
    notify,
    NOTIFY,
    Port
);
nix::ioctl_write_ptr_bad!(
    /// `IOCTL_EVTCHN_RESTRICT_DOMID`: restricts the open file to one domain.
    restrict_domid,
    number(6, size_of::<RestrictDomid>()),
    RestrictDomid
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_match_the_kernel_abi() {
        assert_eq!((size_of::<BindInterdomain>(), size_of::<BindUnboundPort>()), (8, 4));
        assert_eq!((size_of::<Port>(), size_of::<RestrictDomid>()), (4, 2));
        assert_eq!(number(1, size_of::<BindInterdomain>()), 0x0008_4501);
        assert_eq!(number(6, size_of::<RestrictDomid>()), 0x0002_4506);
    }
}
