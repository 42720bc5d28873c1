//! libxl's record of a domain, as far as checks need it. Read without its lock: libxl replaces the
//! file as a whole, and a check that took the lock would write a file.

use std::io;

use serde_json::Value;

use super::host::Host;
use super::inventory::LibxlGuest;
use crate::hot_plug::domain_record::RECORDS;

/// Reads a guest's record; `None` if there is none, or it is no JSON.
///
/// # Errors
/// This user may not read it.
pub(super) fn read(host: &Host, guest: &LibxlGuest) -> io::Result<Option<Value>> {
    // The UUID is a part of the path.
    if !guest.uuid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Ok(None);
    }
    let path = format!("{RECORDS}/userdata-d.{}.{}.libxl-json", guest.id, guest.uuid);
    match host.text(path) {
        Ok(text) => {
            let text = text.split('\0').next().unwrap_or_default();
            Ok(serde_json::from_str(text).ok())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => Ok(None),
    }
}
