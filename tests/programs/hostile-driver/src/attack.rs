//! What a guest can do to the domain that serves its disk, each for a while: keys that make no
//! sense, more work than there are limits for, requests that take long, events without an end,
//! rings that are written over.
//!
//! Nothing of it has to succeed. What fails is tried again, with a device that was reset or
//! connected anew.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use protocol::grant::{GrantAddress, PAGE_SIZE};
use protocol::message::{FeatureBlocks, Request, VqueueFlags, VqueueUpdate};
use protocol::pool::PoolPage;
use protocol::status::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, F_ACCESS_PLATFORM, F_VERSION_1, FEATURES_OK,
};
use userspace::Frontend;
use xen::{
    Access, EventChannels, Evtchn, Gntalloc, LocalPort, SharedPages, XenStore, XenStoreConnection,
};

const PAGE: usize = PAGE_SIZE as usize;

/// Entries of the queue.
const SIZE: u16 = 16;
/// Pages: descriptors, available ring, used ring, headers, and so many behind them that make an
/// indirect table with what they hold.
const TABLE: usize = 4;
const TABLE_PAGES: usize = 32;
const PAGES: u16 = (TABLE + TABLE_PAGES) as u16;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Features that are accepted: indirect descriptors, discard and write-zeroes beside those that
/// must be.
const FEATURES: u64 = 1 << 28 | 1 << 13 | 1 << 14 | 1 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM;

/// Request types.
const IN: u32 = 0;
const WRITE_ZEROES: u32 = 13;

/// Characters of a key that makes no sense: as many as a guest may write.
const GARBAGE: usize = 2000;

/// Tries everything, `time` in all.
pub(crate) fn run(device: &str, time: Duration) -> Result<()> {
    let attacks: [(&str, Attack); 6] = [
        ("keys", keys),
        ("work without limits", |device, end| with_disk(device, end, large_requests)),
        ("requests that take long", |device, end| with_disk(device, end, zeroes)),
        ("doorbells", |device, end| with_disk(device, end, doorbells)),
        ("messages and changes", |device, end| with_disk(device, end, messages)),
        ("scribbled rings", |device, end| with_disk(device, end, scribble)),
    ];
    for (name, attack) in attacks {
        let end = Instant::now() + time / attacks.len() as u32;
        let mut tries = 0u32;
        while Instant::now() < end {
            tries += 1;
            if let Err(error) = attack(device, end) {
                eprintln!("hostile-driver: {name}: {error:#}");
            }
        }
        println!("{name}: {tries} tries");
    }
    Ok(())
}

type Attack = fn(&str, Instant) -> Result<()>;

/// A frontend that comes with garbage in place of its page and its channel, and comes again.
fn keys(device: &str, end: Instant) -> Result<()> {
    let mut store = XenStoreConnection::open()?;
    let garbage = "\u{1}x".repeat(GARBAGE / 2);
    while Instant::now() < end {
        for (key, value) in [
            ("state", "1"),
            ("message-page-ref", garbage.as_str()),
            ("event-channel", &garbage),
            ("state", "3"),
        ] {
            store.write(&format!("{device}/{key}"), value)?;
        }
        // Left alone for a while, and what is beside it changes.
        for number in 0..100 {
            store.write(&format!("{device}/other"), &number.to_string())?;
        }
    }
    store.write(&format!("{device}/state"), "6")?;
    Ok(())
}

/// A disk with one queue, set up as drivers do.
struct Disk {
    device: String,
    frontend: Frontend,
    events: Evtchn,
    doorbell: LocalPort,
    pages: SharedPages,
    available: u16,
}

/// Has `attack` go on with a disk until it fails or the time is over.
fn with_disk(
    device: &str,
    end: Instant,
    attack: fn(&mut Disk, Instant) -> Result<()>,
) -> Result<()> {
    let mut disk = Disk::open(device)?;
    attack(&mut disk, end)
}

impl Disk {
    fn open(device: &str) -> Result<Self> {
        let frontend =
            Frontend::open(device).with_context(|| format!("cannot connect {device}"))?;
        let backend = frontend.backend();
        let mut events = Evtchn::open(backend)?;
        let doorbell = events.allocate()?;
        let pages = Gntalloc::new(backend).share(PAGES, Access::ReadWrite)?;
        let device = device.to_owned();
        let mut disk = Self { device, frontend, events, doorbell, pages, available: 0 };
        disk.start()?;
        Ok(disk)
    }

    /// Everything up to DRIVER_OK, from a reset on.
    fn start(&mut self) -> Result<()> {
        let began = ACKNOWLEDGE | DRIVER;
        self.ask(Request::SetDeviceStatus(0))?;
        self.ask(Request::SetDeviceStatus(began))?;
        let blocks = FEATURES.to_le_bytes();
        self.ask(Request::SetDriverFeatures(FeatureBlocks::new(0, &blocks)))?;
        self.ask(Request::SetDeviceStatus(began | FEATURES_OK))?;
        let update = VqueueUpdate {
            index: 0,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: SIZE.into(),
            reserved: 0,
            descriptor: self.address(0, 0),
            driver: self.address(1, 0),
            device: self.address(2, 0),
        };
        self.available = 0;
        self.put(1, 0, &[0; 64])?;
        self.ask(Request::SetVqueue(update))?;
        self.ask(Request::BindQueue { index: 0, port: self.doorbell.0 })?;
        self.ask(Request::SetDeviceStatus(began | FEATURES_OK | DRIVER_OK))
    }

    fn ask(&mut self, request: Request<'_>) -> Result<()> {
        Ok(self.frontend.ask(request, |_| Some(()))?)
    }

    /// The address, for the device, of a byte of a page.
    fn address(&self, page: usize, offset: usize) -> u64 {
        let reference = self.pages.references().get(page);
        reference.map_or(0, |of| GrantAddress::new(*of, offset as u64).encode())
    }

    fn put(&self, page: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let slice = self.pages.as_ref().slice(page * PAGE + offset, bytes.len());
        slice.context("outside of the shared pages")?.copy_from(bytes);
        Ok(())
    }

    fn descriptor(&self, page: usize, index: usize, of: (u64, u32, u16, u16)) -> Result<()> {
        let (address, length, flags, next) = of;
        let mut bytes = [0; 16];
        let fields = address.to_le_bytes().into_iter().chain(length.to_le_bytes());
        let fields = fields.chain(flags.to_le_bytes()).chain(next.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        self.put(page, index * 16, &bytes)
    }

    /// A request's header of this type, in the page of headers.
    fn header(&self, kind: u32, sector: u64) -> Result<u64> {
        self.put(3, 0, &kind.to_le_bytes())?;
        self.put(3, 8, &sector.to_le_bytes())?;
        Ok(self.address(3, 0))
    }

    /// Makes so many heads available, all of them the first descriptor.
    fn offer(&mut self, count: u16) -> Result<()> {
        self.available = self.available.wrapping_add(count);
        self.put(1, 2, &self.available.to_le_bytes())?;
        Ok(self.events.notify(self.doorbell)?)
    }
}

/// Reads of 24 MiB, chains longer than the queue, and pages shared that were shared before.
fn large_requests(disk: &mut Disk, end: Instant) -> Result<()> {
    // Every entry names the same pages.
    let entries = TABLE_PAGES * PAGE / 16;
    let (header, data) = (disk.header(IN, 0)?, disk.address(TABLE, 0));
    let length = (24 << 20) / (entries as u32 - 2);
    for entry in 0..entries {
        let (page, index) = (TABLE + entry / 256, entry % 256);
        let next = entry as u16 + 1;
        let of = match entry {
            0 => (header, 16, NEXT, next),
            last if last == entries - 1 => (disk.address(3, 64), 1, WRITE, 0),
            _ => (data, length, NEXT | WRITE, next),
        };
        disk.descriptor(page, index, of)?;
    }
    let table = disk.address(TABLE, 0);
    let mut first = 0;
    while Instant::now() < end {
        // As long as it is, and as long as a table can be said to be.
        for bytes in [entries as u32 * 16, 65_535 * 16] {
            disk.descriptor(0, 0, (table, bytes, INDIRECT, 0))?;
            disk.offer(SIZE)?;
        }
        if let Some(reference) = disk.pages.references().get(TABLE).copied() {
            let first_page = PoolPage(first % 4096);
            disk.ask(Request::SharePages { first: first_page, count: 1, reference })?;
        }
        first += 1;
        if first % 64 == 0 {
            disk.start()?;
        }
    }
    Ok(())
}

/// The ring is full of write-zeroes over the whole disk, all the time.
fn zeroes(disk: &mut Disk, end: Instant) -> Result<()> {
    let header = disk.header(WRITE_ZEROES, 0)?;
    disk.put(3, 128, &0u64.to_le_bytes())?;
    disk.put(3, 136, &(64u32 << 11).to_le_bytes())?;
    disk.put(3, 140, &0u32.to_le_bytes())?;
    disk.descriptor(0, 0, (header, 16, NEXT, 1))?;
    disk.descriptor(0, 1, (disk.address(3, 128), 16, NEXT, 2))?;
    disk.descriptor(0, 2, (disk.address(3, 64), 1, WRITE, 0))?;
    while Instant::now() < end {
        let mut used = [0; 2];
        let slice = disk.pages.as_ref().slice(2 * PAGE + 2, 2);
        slice.context("outside of the shared pages")?.copy_to(&mut used);
        let free = SIZE - disk.available.wrapping_sub(u16::from_le_bytes(used)).min(SIZE);
        match free {
            0 => std::thread::yield_now(),
            free => disk.offer(free)?,
        }
    }
    Ok(())
}

/// Doorbells of an empty queue.
fn doorbells(disk: &mut Disk, end: Instant) -> Result<()> {
    while Instant::now() < end {
        for _ in 0..64 {
            disk.events.notify(disk.doorbell)?;
        }
    }
    Ok(())
}

/// Messages as fast as they are answered, events for queues that there are not, and changes in
/// XenStore.
fn messages(disk: &mut Disk, end: Instant) -> Result<()> {
    let mut store = XenStoreConnection::open()?;
    while Instant::now() < end {
        for number in 0..16 {
            disk.ask(Request::Ping(number))?;
            disk.ask(Request::ResetVqueue { index: number })?;
            disk.ask(Request::GetConfig { offset: number, size: u32::MAX })?;
            store.write(&format!("{}/other", disk.device), &number.to_string())?;
        }
        let beyond = u16::MAX;
        let _ = disk.frontend.ring(beyond);
    }
    Ok(())
}

/// Whatever comes, in rings, headers and tables, while the device looks at them.
fn scribble(disk: &mut Disk, end: Instant) -> Result<()> {
    let mut state = 0x9e37_79b9u32;
    while Instant::now() < end {
        for _ in 0..512 {
            // xorshift32
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let at = state as usize / 4 * 4 % (usize::from(PAGES) * PAGE - 4);
            // Every other word is an address's lower half, or its upper.
            let value = match state & 3 {
                0 => state,
                1 => 0x8000_0000,
                2 => disk.address(TABLE, 0) as u32,
                _ => state >> 20,
            };
            disk.put(at / PAGE, at % PAGE, &value.to_le_bytes())?;
        }
        disk.offer(1)?;
        if state.is_multiple_of(16) {
            disk.start()?;
        }
    }
    Ok(())
}
