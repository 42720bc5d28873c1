//! `cargo lab shell`: opens a console in Dom0.

use std::io::{IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::termios::{self, SetArg, Termios};

use crate::boot::{MachineKind, Terminal};
use crate::build::{Payload, StorageTools};
use crate::debian::Arch;
use crate::lab::Lab;
use crate::progress::Progress;

/// The key that leaves the console: Ctrl-], as in telnet.
const LEAVE: u8 = 0x1d;

/// Connects the user's terminal to a shell in Dom0 until the user leaves it.
pub(crate) fn shell(arch: Arch, kind: MachineKind) -> Result<i32> {
    ensure!(
        std::io::stdin().is_terminal(),
        "`cargo lab shell` needs a terminal; use `cargo lab run SCRIPT` to run a script"
    );
    let progress = Progress::new();
    let lab = Lab::prepare(arch, "shell", &[], &progress)?;
    let job = job(terminal_size().unwrap_or((24, 80)));
    let payload = Payload { job, files: &[], guest_tools: StorageTools::Few };
    let mut machine = lab.boot(kind, &payload, true, &progress)?;
    let terminal = machine.terminal.take().context("Dom0 has no terminal")?;
    eprintln!("This is a shell in Dom0. `exit` or Ctrl-] leaves it and stops the machine.");
    let raw = RawTerminal::enter()?;
    let talked = talk(terminal);
    drop(raw);
    eprintln!();
    talked.map(|()| 0)
}

/// Returns the script that runs a shell on Dom0's terminal `hvc1`; `hvc0` is Xen's console.
fn job((rows, columns): (u16, u16)) -> String {
    format!(
        "#!/bin/sh\n\
         exec 9>&- </dev/hvc1 >/dev/hvc1 2>&1\n\
         stty sane rows {rows} cols {columns}\n\
         export TERM=linux PS1='dom0:$PWD# '\n\
         cd /lab\n\
         setsid -c -w sh -i\n"
    )
}

/// Returns the rows and columns of the user's terminal.
fn terminal_size() -> Option<(u16, u16)> {
    let mut stty = Command::new("stty");
    let output = stty.arg("size").stdin(Stdio::inherit()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (rows, columns) = text.trim().split_once(' ')?;
    let size = (rows.parse().ok()?, columns.parse().ok()?);
    Some(size).filter(|&(rows, columns)| rows > 0 && columns > 0)
}

/// Copies bytes both ways until Dom0 closes the terminal or the user presses [`LEAVE`].
fn talk(terminal: Terminal) -> Result<()> {
    let (ended, wait) = mpsc::channel();
    let from_dom0 = terminal.try_clone()?;
    let to_dom0 = terminal;
    let other = ended.clone();
    thread::spawn(move || copy(from_dom0, std::io::stdout(), None, &ended));
    thread::spawn(move || copy(std::io::stdin(), to_dom0, Some(LEAVE), &other));
    Ok(wait.recv()?)
}

fn copy(mut from: impl Read, mut to: impl Write, end: Option<u8>, ended: &Sender<()>) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..read).unwrap_or_default();
        let left = end.is_some_and(|end| bytes.contains(&end));
        if left || to.write_all(bytes).and_then(|()| to.flush()).is_err() {
            break;
        }
    }
    // The receiver no longer exists if the other direction ended first.
    let _ = ended.send(());
}

/// The user's terminal in raw mode, in which it passes on every key. Dropping it restores the mode.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Result<RawTerminal> {
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}
