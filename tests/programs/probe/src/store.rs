//! XenStore, as a program in a guest reaches it.

use anyhow::{Context, Result};
use xen::{XenStore, XenStoreConnection};

/// Prints what stands at `path`, nothing if there is nothing or it may not be read.
pub(crate) fn read(path: &str) -> Result<()> {
    let value = XenStoreConnection::open()?.read(path)?;
    println!("{}", value.with_context(|| format!("{path} cannot be read"))?);
    Ok(())
}

/// Writes `value` there.
pub(crate) fn write(path: &str, value: &str) -> Result<()> {
    Ok(XenStoreConnection::open()?.write(path, value)?)
}
