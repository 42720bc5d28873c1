//! The record of a device as a guest's process has it: the supervisor opens the file.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::link::{DeviceLink, too_many_files};
use super::message::{RecordRequest, Reply, Request};
use crate::record::{Record, RecordError, RecordVersion, Records};

/// The record of one device, by the supervisor, which knows its name.
#[derive(Debug)]
pub struct SupervisedRecords {
    link: Arc<DeviceLink>,
    version: RecordVersion,
}

impl SupervisedRecords {
    /// A record by `link`, of this version if it is new.
    pub fn new(link: Arc<DeviceLink>, version: RecordVersion) -> Self {
        Self { link, version }
    }
}

impl Records for SupervisedRecords {
    fn create(&self, name: &str, queue_sizes: &[u16]) -> Result<Record, RecordError> {
        let file = self.link.ask_for_file(&Request::Record(RecordRequest::Create));
        let file = file.map_err(|error| RecordError::File("make", error))?;
        Record::create_as(self.version, File::from(file), queue_sizes).inspect_err(|_| {
            // What is left of it is none.
            let _ = self.remove(name);
        })
    }

    fn open(&self, _: &str) -> Result<Option<Record>, RecordError> {
        let failed = |error| RecordError::File("open", error);
        let asked = self.link.ask(&Request::Record(RecordRequest::Open));
        match asked.map_err(|error| failed(io::Error::other(error)))? {
            (Reply::Answer(false), _) => Ok(None),
            (Reply::Answer(true), files) => {
                let file = files.into_iter().next().ok_or_else(|| failed(too_many_files()))?;
                Record::open_as(self.version, File::from(file)).map(Some)
            }
            (reply, _) => Err(failed(reply.into_error())),
        }
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        match self.link.ask(&Request::Record(RecordRequest::Remove)).map_err(io::Error::other)? {
            (Reply::Done, _) => Ok(()),
            (reply, _) => Err(reply.into_error()),
        }
    }
}
