//! Access to XenStore from a program in a guest.

use anyhow::{Context, Result};
use xen::{XenStore, XenStoreConnection};

/// Prints the value at `path`.
///
/// # Errors
/// The key is missing, or the guest may not read it.
pub(crate) fn read(path: &str) -> Result<()> {
    let value = XenStoreConnection::open()?.read(path)?;
    println!(
        "{}",
        value.with_context(|| format!("the XenStore key {path} is missing or not readable"))?
    );
    Ok(())
}

/// Writes `value` at `path`.
pub(crate) fn write(path: &str, value: &str) -> Result<()> {
    Ok(XenStoreConnection::open()?.write(path, value)?)
}
