//! Ports between the lab and Dom0: virtio-serial ports, each one end of a socket pair of ours.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// QEMU's end of a port, to be dropped when QEMU runs: it has its own copy then.
pub(crate) struct QemuEnd(#[allow(dead_code, reason = "held open until QEMU has it")] UnixStream);

/// Adds the port `name` to QEMU's command line: as a tty for `virtconsole`, as a plain stream of
/// bytes for `virtserialport`. Gives the lab's end.
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

/// Adds the port `name`, all of which QEMU writes to the file `path`.
pub(crate) fn add_file(qemu: &mut Command, name: &str, path: &std::path::Path) {
    qemu.arg("-chardev")
        .arg(format!("file,id={name},path={}", path.display()))
        .arg("-device")
        .arg(format!("virtserialport,chardev={name},name=lab.{name}"));
}
