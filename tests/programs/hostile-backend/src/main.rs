//! `hostile-backend`: plays the backend of one disk like xen-virtiod until the driver runs, and
//! then tries to keep the guest busy. Scenarios use it to measure the cost for the guest.
#![forbid(unsafe_code)]

mod device;
mod frontend;

use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::message::{Body, Message};
use protocol::page::{Consumer, PageWords, Popped, Producer, PushError, QueueDirection, SLOT_SIZE};
use xen::{EventChannels, Evtchn, Gntdev, LocalPort};

use crate::device::Disk;
use crate::frontend::{Frontend, MAX_MESSAGE_SIZE};

/// A useless message: an event with an unknown number.
const NONSENSE: [u8; 8] = [0, 0x7f, 0, 0, 0, 0, 8, 0];

/// Serves the first disk that the toolstack creates, until a signal ends the process.
#[derive(Debug, Parser)]
struct CommandLine {
    attack: Attack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Attack {
    /// Once the driver runs, sends unknown messages and signals without a pause.
    Nonsense,
    /// Changes the configuration's generation whenever the driver reads the configuration.
    ChangingConfig,
}

fn main() -> ExitCode {
    match run(CommandLine::parse().attack) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile-backend: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(attack: Attack) -> Result<()> {
    let frontend = Frontend::accept()?;
    let pages = frontend.map(&Gntdev::open(frontend.guest)?)?;
    let page = pages.as_ref().page_words().context("the message page is not writable")?;
    let mut events = Evtchn::open(frontend.guest)?;
    let port = events.bind(frontend.port)?;
    frontend.connected()?;
    let mut channel = Channel::new(page, events, port);
    let mut disk = Disk::new(attack == Attack::ChangingConfig);
    loop {
        channel.answer(&mut disk)?;
        if attack == Attack::Nonsense && disk.is_running() {
            channel.bother()?;
        } else {
            channel.wait()?;
        }
    }
}

/// The message page and its event channel.
struct Channel<'a> {
    page: &'a PageWords,
    events: Evtchn,
    port: LocalPort,
    requests: Consumer,
    answers: Producer,
    signals: u64,
}

impl<'a> Channel<'a> {
    fn new(page: &'a PageWords, events: Evtchn, port: LocalPort) -> Self {
        let requests = Consumer::new(QueueDirection::DriverToDevice);
        let answers = Producer::new(QueueDirection::DeviceToDriver);
        Self { page, events, port, requests, answers, signals: 0 }
    }

    /// Answers all requests in the page.
    fn answer(&mut self, disk: &mut Disk) -> Result<()> {
        let (mut bytes, mut reply) = ([0; SLOT_SIZE], [0; SLOT_SIZE]);
        while let Popped::Message { size } =
            self.requests.pop(self.page, MAX_MESSAGE_SIZE, &mut bytes)?
        {
            let message = Message::decode(bytes.get(..size).unwrap_or(&[]));
            let Ok(Message { token, body: Body::Request(request), .. }) = message else { continue };
            let answer = Message::response(token, disk.answer(&request));
            let size = answer.encode(&mut reply).context("an answer is longer than a slot")?;
            self.push(reply.get(..size).unwrap_or(&[]))?;
            self.events.notify(self.port)?;
        }
        Ok(())
    }

    /// Adds a message to the page; waits for a free slot if there is none.
    fn push(&mut self, message: &[u8]) -> Result<()> {
        loop {
            match self.answers.push(self.page, message) {
                Ok(()) => return Ok(()),
                Err(PushError::Full) => self.wait()?,
                Err(error) => bail!("cannot add a message to the page: {error:?}"),
            }
        }
    }

    /// Fills the page with useless messages, and signals the driver.
    fn bother(&mut self) -> Result<()> {
        while self.answers.push(self.page, &NONSENSE).is_ok() {}
        self.events.notify(self.port)?;
        self.signals += 1;
        if self.signals.is_power_of_two() {
            println!("hostile-backend: sent {} signals", self.signals);
        }
        self.take_event()
    }

    /// Waits for the driver's signal.
    fn wait(&mut self) -> Result<()> {
        let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).context("cannot wait for the driver")?;
        self.take_event()
    }

    fn take_event(&mut self) -> Result<()> {
        while let Some(port) = self.events.pending()? {
            self.events.unmask(port)?;
        }
        Ok(())
    }
}
