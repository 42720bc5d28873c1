//! What the backend reaches beside what its devices are asked to: any page of any guest, for
//! whoever asks.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use xen::DomId;
use xen_virtiod::dma::PageNumber;

use crate::foreign::Foreign;

/// Answers the lines that are written to `fifo`, as long as the process lives.
pub(crate) fn answer(fifo: &Path) {
    loop {
        if let Err(error) = answer_writer(fifo) {
            tracing::error!("{}: {error}", fifo.display());
            return;
        }
    }
}

/// Answers one writer, up to its end.
fn answer_writer(fifo: &Path) -> io::Result<()> {
    for line in BufReader::new(File::open(fifo)?).lines() {
        if let Err(error) = answer_line(&line?) {
            tracing::error!("{error:#}");
        }
    }
    Ok(())
}

fn answer_line(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let mut word = || words.next().with_context(|| format!("not DOMID FRAME FILE: {line}"));
    let (domid, frame, file) = (word()?.parse()?, word()?.parse()?, word()?);
    let answer = match Foreign::open(DomId(domid))?.read_page(PageNumber(frame)) {
        Ok(page) => page,
        Err(error) => format!("refused: {:#}\n", anyhow::Error::from(error)).into_bytes(),
    };
    fs::write(file, answer).with_context(|| format!("cannot write {file}"))
}
