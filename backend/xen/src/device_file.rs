//! Opening the devices of `/dev/xen`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use libc::c_int;

/// A device that cannot be opened. The hint names the usual causes.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {device} (is this a Xen domain, and is the module {module} loaded?)")]
struct NotOpened {
    device: &'static str,
    module: &'static str,
    source: io::Error,
}

/// Opens `device`, which the kernel's `module` provides, for reading and writing, with more `flags`
/// of open(2).
///
/// # Errors
/// The kernel's error, with its kind kept.
pub(crate) fn open(device: &'static str, module: &'static str, flags: c_int) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device);
    opened.map_err(|source| io::Error::new(source.kind(), NotOpened { device, module, source }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Causes;

    #[test]
    fn missing_device_is_reported_with_a_hint_and_one_cause() {
        let error = open("/nonexistent", "xen-none", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let shown = Causes(&error).to_string();
        assert!(shown.contains("/nonexistent (is this a Xen domain"), "{shown}");
        assert_eq!(shown.matches("No such file").count(), 1, "{shown}");
    }
}
