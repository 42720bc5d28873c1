//! The terminals of consoles as a guest's process has them: the supervisor opens them, and keeps
//! them for the next process.

use std::io;
use std::sync::Arc;

use super::link::{DeviceLink, too_many_files};
use super::message::{Reply, Request};
use crate::device::console::{Pty, Terminals};

/// The terminal of one console, by the supervisor.
pub struct SupervisedTerminals {
    link: Arc<DeviceLink>,
}

impl SupervisedTerminals {
    /// A terminal by `link`.
    pub fn new(link: Arc<DeviceLink>) -> Self {
        Self { link }
    }
}

impl Terminals for SupervisedTerminals {
    fn open(&self) -> io::Result<Pty> {
        let (reply, ends) = self.link.ask(&Request::OpenTerminal).map_err(io::Error::other)?;
        match (reply, ends.try_into()) {
            (Reply::Terminal { path }, Ok(ends)) => Ok(Pty::of(ends, path)),
            (Reply::Terminal { .. }, Err(_)) => Err(too_many_files()),
            (reply, _) => Err(reply.into_error()),
        }
    }
}
