//! Reads any page of any guest on request, which shows that the backend reaches more memory than
//! its devices need.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use xen::DomId;
use xen_virtiod::dma::PageNumber;

use crate::foreign::Foreign;

/// Answers lines from `fifo` until the process ends or the FIFO fails.
pub(crate) fn answer(fifo: &Path) {
    loop {
        if let Err(error) = answer_writer(fifo) {
            tracing::error!("cannot read {}, peeks end: {error}", fifo.display());
            return;
        }
    }
}

/// Answers the lines of one writer, until it closes the FIFO.
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
    let mut word =
        || words.next().with_context(|| format!("the line {line:?} is not DOMID FRAME FILE"));
    let (domid, frame, file) = (word()?.parse()?, word()?.parse()?, word()?);
    let answer = match Foreign::open(DomId(domid))?.read_page(PageNumber(frame)) {
        Ok(page) => page,
        Err(error) => format!("refused: {:#}\n", anyhow::Error::from(error)).into_bytes(),
    };
    fs::write(file, answer).with_context(|| format!("cannot write {file}"))
}
