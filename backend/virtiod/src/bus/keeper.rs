//! Keeps the record of a connection up to date.

use std::sync::Arc;

use tracing::Level;

use super::DevicePath;
use crate::Causes;
use crate::record::{
    Answered, ConnectionId, DriverSetup, MessageMark, Record, RecordError, Records,
};
use crate::stats::DeviceStats;

/// A record and its connection. Dropping this leaves the file for another process.
#[derive(Debug)]
pub struct Keeper {
    records: Arc<dyn Records>,
    name: String,
    record: Record,
    connection: ConnectionId,
}

impl Keeper {
    /// Makes the record of a new connection.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn create(
        records: &Arc<dyn Records>,
        path: &DevicePath,
        connection: ConnectionId,
        queue_sizes: &[u16],
    ) -> Result<Self, RecordError> {
        let name = path.record_name();
        let record = records.create(&name, queue_sizes)?;
        Ok(Self { records: Arc::clone(records), name, record, connection })
    }

    /// Keeps the record of a connection that was taken over.
    pub fn of(
        records: &Arc<dyn Records>,
        path: &DevicePath,
        connection: ConnectionId,
        record: Record,
    ) -> Self {
        Self { records: Arc::clone(records), name: path.record_name(), record, connection }
    }

    /// The record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Marks a request before its response is sent.
    pub fn set_mark(&mut self, mark: MessageMark) {
        self.record.set_mark(mark);
    }

    /// Saves what the driver has set up, with the answer to its last request.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn save(
        &mut self,
        setup: DriverSetup,
        answered: Option<Answered>,
    ) -> Result<(), RecordError> {
        let connection = self.connection.clone();
        self.record.save(&DriverSetup { connection, answered, ..setup })
    }

    /// Removes the record: no process takes the connection over.
    pub fn remove(self, stats: &DeviceStats) {
        remove_record(&*self.records, &self.name, stats);
    }
}

/// Removes the record of a device, if there is one.
pub fn remove_record(records: &dyn Records, name: &str, stats: &DeviceStats) {
    if let Err(error) = records.remove(name) {
        let what = format_args!("cannot remove the device's record: {}", Causes(&error));
        stats.log.line(Level::WARN, what);
    }
}
