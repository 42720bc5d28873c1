//! The users of guests' processes: each guest's is another one, and nobody else's.

use nix::unistd::User;

use crate::Causes;
use xen::DomId;

/// If there is a user of this name, the process of domain N has its number plus N, as QEMU has with
/// `xen-qemuuser-range-base` (xl.cfg(5), `device_model_user`).
const BASE_USER: &str = "xen-virtiod-range-base";

/// The first number otherwise. No part of a system allocates numbers from here to 2147352575
/// (systemd's UIDS-GIDS).
const BASE: u32 = 1_879_048_192;

/// Numbers of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UserRange {
    base: u32,
}

impl UserRange {
    /// The range of this host.
    pub(super) fn of_host() -> Self {
        let found = User::from_name(BASE_USER).unwrap_or_else(|errno| {
            tracing::warn!("cannot look up the user {BASE_USER}: {}", Causes(&errno));
            None
        });
        let base = found.map(|user| user.uid.as_raw()).filter(|uid| *uid > 0);
        Self { base: base.unwrap_or(BASE) }
    }

    /// The user of a guest's process.
    pub(super) fn of(self, guest: DomId) -> u32 {
        // A domain's number has 15 bits.
        self.base.saturating_add(guest.0.into())
    }
}
