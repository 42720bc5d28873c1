//! `slow-device`: the device side of an entropy device that uses freedoms of the virtio-msg draft
//! which xen-virtiod does not use. It completes a reset later, sends PING to the driver, offers
//! only mandatory features, and reports only in its status that it could not start. It prints the
//! driver's reactions.
#![forbid(unsafe_code)]

mod device;

use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protocol::binding::{
    RECOMMENDED_MESSAGE_SIZE, REVISION, XenbusState, backend_key, frontend_key,
};
use protocol::grant::GrantRef;
use protocol::message::{Body, Message, Request, Response};
use protocol::page::{Consumer, PageWords, Popped, Producer, QueueDirection, SLOT_SIZE};
use xen::mapped::MappedRange;
use xen::{
    Access, DomId, EventChannels, Evtchn, Gntdev, GrantTable, LocalPort, RemotePort, XenStore,
    XenStoreConnection,
};

use crate::device::Device;

/// Number and token of the PING that the driver must answer.
const PING: (u32, u16) = (0x5eed_cafe, 0xbeef);

/// Serves one device until its frontend leaves.
#[derive(Debug, Parser)]
struct CommandLine {
    /// Domain ID of the guest.
    guest: u16,
    /// Number of the device in the class `virtio`.
    number: u32,
}

fn main() -> ExitCode {
    match run(&CommandLine::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slow-device: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(&CommandLine { guest, number }: &CommandLine) -> Result<()> {
    let mut ends = Ends::open(guest, number)?;
    ends.offer()?;
    while ends.frontend_state()? != XenbusState::Initialised {
        ends.wait(None)?;
    }
    let guest = DomId(guest);
    let page = GrantRef(ends.frontend_number(frontend_key::MESSAGE_PAGE)?);
    let page = Gntdev::open(guest)?.map(&[page], Access::ReadWrite)?;
    let mut events = Evtchn::open(guest)?;
    let port = events.bind(RemotePort(ends.frontend_number(frontend_key::EVENT_CHANNEL)?))?;
    let mut messages = Messages::new(page.as_ref());
    ends.enter(XenbusState::Connected)?;
    while ends.are_connected()? {
        messages.serve(&mut events, port)?;
        ends.wait(Some(&events))?;
    }
    events.unbind(port);
    drop(page);
    ends.enter(XenbusState::Closed)
}

/// The two xenbus directories of the device.
struct Ends {
    store: XenStoreConnection,
    backend: String,
    frontend: String,
}

impl Ends {
    fn open(guest: u16, number: u32) -> Result<Self> {
        let mut store = XenStoreConnection::open()?;
        let backend = format!("backend/virtio/{guest}/{number}");
        let frontend = store.read(&format!("{backend}/frontend"))?;
        let frontend = frontend.with_context(|| format!("XenStore has no device {backend}"))?;
        store.watch(&format!("{frontend}/state"))?;
        store.watch(&format!("{backend}/state"))?;
        Ok(Self { store, backend, frontend })
    }

    /// Writes the mandatory keys, and enters InitWait [2.3].
    fn offer(&mut self) -> Result<()> {
        for (key, value) in [
            (backend_key::REVISION, REVISION),
            (backend_key::MAX_MESSAGE_SIZE, RECOMMENDED_MESSAGE_SIZE),
            (backend_key::BUS_FEATURES, 0),
        ] {
            self.store.write(&format!("{}/{key}", self.backend), &value.to_string())?;
        }
        self.enter(XenbusState::InitWait)
    }

    fn enter(&mut self, state: XenbusState) -> Result<()> {
        let key = format!("{}/state", self.backend);
        Ok(self.store.write_beside(&key, &key, &(state as u32).to_string())?)
    }

    fn frontend_state(&mut self) -> Result<XenbusState> {
        state(&mut self.store, &self.frontend)
    }

    /// Whether neither the frontend nor the toolstack has ended the connection.
    fn are_connected(&mut self) -> Result<bool> {
        let frontend = self.frontend_state()?;
        let here = state(&mut self.store, &self.backend)? == XenbusState::Connected;
        Ok(here && matches!(frontend, XenbusState::Initialised | XenbusState::Connected))
    }

    fn frontend_number(&mut self, key: &str) -> Result<u32> {
        let key = format!("{}/{key}", self.frontend);
        let value = self.store.read(&key)?.with_context(|| format!("the key {key} is missing"))?;
        value.trim().parse().with_context(|| format!("the key {key} is {value:?}, not a number"))
    }

    /// Waits for a change in XenStore, or for an event.
    fn wait(&mut self, events: Option<&Evtchn>) -> Result<()> {
        if self.store.take_events()? {
            return Ok(());
        }
        let entry = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![entry(self.store.as_fd())];
        fds.extend(events.map(|events| entry(events.as_fd())));
        poll(&mut fds, PollTimeout::NONE)?;
        Ok(())
    }
}

fn state(store: &mut XenStoreConnection, directory: &str) -> Result<XenbusState> {
    let state = store.read(&format!("{directory}/state"))?;
    let number = state.and_then(|text| text.trim().parse().ok());
    Ok(XenbusState::from_number(number.unwrap_or(0)))
}

/// The message page and the device behind it.
struct Messages<'p> {
    page: &'p MappedRange,
    from_driver: Consumer,
    to_driver: Producer,
    device: Device,
    pinged: bool,
}

impl<'p> Messages<'p> {
    fn new(page: &'p MappedRange) -> Self {
        Self {
            page,
            from_driver: Consumer::new(QueueDirection::DriverToDevice),
            to_driver: Producer::new(QueueDirection::DeviceToDriver),
            device: Device::new(),
            pinged: false,
        }
    }

    /// Answers all messages in the page.
    fn serve(&mut self, events: &mut Evtchn, port: LocalPort) -> Result<()> {
        while events.pending()?.is_some() {}
        let words = self.page.page_words().context("the message page is not mapped writable")?;
        let size = RECOMMENDED_MESSAGE_SIZE as usize;
        let mut buffer = [0; SLOT_SIZE];
        while let Popped::Message { size } = self.from_driver.pop(words, size, &mut buffer)? {
            let bytes = buffer.get(..size).context("a message is longer than a slot")?;
            match Message::decode(bytes)? {
                Message { token, body: Body::Request(request) } => {
                    self.ping(words)?;
                    let response = self.device.answer(request);
                    push(&mut self.to_driver, words, &Message::response(token, response))?;
                }
                Message { token, body: Body::Response(Response::Ping(number)) } => {
                    println!("PING {number:#x} answered under {token:#x}");
                }
                other => println!("not understood: {other:?}"),
            }
            events.notify(port)?;
        }
        Ok(events.unmask(port)?)
    }

    /// Sends one PING before the answer to the driver's first request, while the driver waits for
    /// that answer.
    fn ping(&mut self, words: &PageWords) -> Result<()> {
        if std::mem::replace(&mut self.pinged, true) {
            return Ok(());
        }
        let (number, token) = PING;
        push(&mut self.to_driver, words, &Message::request(token, Request::Ping(number)))
    }
}

fn push(to_driver: &mut Producer, words: &PageWords, message: &Message<'_>) -> Result<()> {
    let mut bytes = [0; SLOT_SIZE];
    let size = message.encode(&mut bytes)?;
    match to_driver.push(words, bytes.get(..size).unwrap_or(&[])) {
        Ok(()) => Ok(()),
        Err(error) => bail!("cannot add a message to the page: {error:?}"),
    }
}
