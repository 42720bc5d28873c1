//! The parser of the configuration file.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use nix::sys::memfd::{MFdFlags, memfd_create};
use xen_virtiod::config::ConfigFile;
use xen_virtiod::device::DeviceId;

/// The target cuts longer inputs; they would test nothing more.
const LONGEST: usize = 16 << 10;

pub(crate) fn run(bytes: &[u8]) {
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get_or_init(|| memfd_create("config", MFdFlags::MFD_CLOEXEC).unwrap().into());
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::write(&path, &bytes[..bytes.len().min(LONGEST)]).unwrap();
    let config = match ConfigFile::new(Some(path.into())).load() {
        Ok(config) => config.expect("the file exists"),
        Err(error) => {
            // The log shows the error on one line, although it quotes the file.
            assert!(!error.to_string().contains('\n'), "{error}");
            return;
        }
    };
    config.service();
    for id in [DeviceId::Network, DeviceId::Console, DeviceId::Entropy, DeviceId::Socket] {
        for domain in [None, Some("web1")] {
            let _ = config.device(domain, 0, id);
        }
    }
}
