//! Copies of vsock streams from standard input and to standard output.

use std::io;
use std::net::Shutdown;
use std::thread;

use anyhow::{Context, Result, anyhow};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Connects to a port and copies both ways.
pub(crate) fn connect(cid: u32, port: u32) -> Result<()> {
    let stream = VsockStream::connect_with_cid_port(cid, port);
    copy(stream.with_context(|| format!("cannot connect to {cid}:{port}"))?)
}

/// Accepts one connection to a port and copies both ways.
pub(crate) fn listen(port: u32) -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port);
    let listener = listener.with_context(|| format!("cannot listen on port {port}"))?;
    let cid = vsock::get_local_cid().context("cannot read the context ID")?;
    eprintln!("probe: listening on {cid}:{port}");
    copy(listener.accept().context("cannot accept a connection")?.0)
}

/// Copies both ways at the same time, each until its source ends.
fn copy(mut stream: VsockStream) -> Result<()> {
    let mut sending = stream.try_clone()?;
    let sender = thread::spawn(move || {
        io::copy(&mut io::stdin().lock(), &mut sending)?;
        sending.shutdown(Shutdown::Write)
    });
    io::copy(&mut stream, &mut io::stdout().lock()).context("cannot receive")?;
    let sent = sender.join().map_err(|_| anyhow!("the sending thread panicked"))?;
    sent.context("cannot send")
}
