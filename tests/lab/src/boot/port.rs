//! Ports between the lab and Dom0: virtio-serial ports, each with a socket pair between QEMU and
//! the lab.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// QEMU's end of a port. Drop it once QEMU runs, which has inherited a copy: the lab's end then
/// reports the end of QEMU.
pub(crate) struct QemuEnd(#[allow(dead_code, reason = "held open until QEMU has it")] UnixStream);

/// Adds the port `name` to QEMU's command line, and returns both ends. Dom0 sees a tty if `device`
/// is `virtconsole`, and a plain stream of bytes if it is `virtserialport`.
pub(crate) fn add(qemu: &mut Command, device: &str, name: &str) -> Result<(UnixStream, QemuEnd)> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?; // QEMU inherits it
    let fd = theirs.as_raw_fd();
    qemu.arg("-chardev")
        .arg(format!("socket,id={name},fd={fd}"))
        .arg("-device")
        .arg(format!("{device},chardev={name},name=lab.{name}"));
    Ok((ours, QemuEnd(theirs)))
}

/// Adds the port `name`; QEMU writes all its data to the file `path`.
pub(crate) fn add_file(qemu: &mut Command, name: &str, path: &std::path::Path) {
    qemu.arg("-chardev")
        .arg(format!("file,id={name},path={}", path.display()))
        .arg("-device")
        .arg(format!("virtserialport,chardev={name},name=lab.{name}"));
}
