//! Attacks of a guest on the domain that serves its disk: invalid XenStore keys, work beyond the
//! limits, slow requests, endless events, and rings that change all the time. Each runs for an
//! equal part of the time.
//!
//! No attack has to succeed. After a failure the program tries it again with a device that it has
//! connected again.

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

/// Number of entries in the queue.
const SIZE: u16 = 16;
/// Pages 0 to 3 hold descriptors, available ring, used ring and headers. The [`TABLE_PAGES`] pages
/// from this one on hold an indirect descriptor table.
const TABLE: usize = 4;
const TABLE_PAGES: usize = 32;
const PAGES: u16 = (TABLE + TABLE_PAGES) as u16;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Features that the driver accepts: indirect descriptors, discard, write-zeroes, and the mandatory
/// ones.
const FEATURES: u64 = 1 << 28 | 1 << 13 | 1 << 14 | 1 << F_VERSION_1 | 1 << F_ACCESS_PLATFORM;

/// Request types.
const IN: u32 = 0;
const WRITE_ZEROES: u32 = 13;

/// Number of characters in an invalid key's value, near XenStore's limit for guests.
const GARBAGE: usize = 2000;

/// Runs all attacks, for `time` in all.
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

/// Connects again and again, with garbage instead of a page and a channel.
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
        // The attack leaves these keys for a while, and changes another key in the directory.
        for number in 0..100 {
            store.write(&format!("{device}/other"), &number.to_string())?;
        }
    }
    store.write(&format!("{device}/state"), "6")?;
    Ok(())
}

/// A disk with one queue, which the program sets up as a correct driver does.
struct Disk {
    device: String,
    frontend: Frontend,
    events: Evtchn,
    doorbell: LocalPort,
    pages: SharedPages,
    available: u16,
}

/// Connects a disk and runs `attack` on it, until the attack fails or the time is over.
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

    /// Resets the device and sets it up, up to DRIVER_OK.
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

    /// The DMA address of a byte in a page.
    fn address(&self, page: usize, offset: usize) -> u64 {
        let reference = self.pages.references().get(page);
        reference.map_or(0, |of| GrantAddress::new(*of, offset as u64).encode())
    }

    fn put(&self, page: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let slice = self.pages.as_ref().slice(page * PAGE + offset, bytes.len());
        slice.context("the range is outside of the shared pages")?.copy_from(bytes);
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

    /// Writes a request's header of this type into the page of headers; returns its DMA address.
    fn header(&self, kind: u32, sector: u64) -> Result<u64> {
        self.put(3, 0, &kind.to_le_bytes())?;
        self.put(3, 8, &sector.to_le_bytes())?;
        Ok(self.address(3, 0))
    }

    /// Makes `count` heads available, all of them descriptor 0, and notifies the device.
    fn offer(&mut self, count: u16) -> Result<()> {
        self.available = self.available.wrapping_add(count);
        self.put(1, 2, &self.available.to_le_bytes())?;
        Ok(self.events.notify(self.doorbell)?)
    }
}

/// Sends reads of 24 MiB in chains longer than the queue, and shares the same page many times.
fn large_requests(disk: &mut Disk, end: Instant) -> Result<()> {
    // All data descriptors name the same pages.
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
        // The table's real length, and a length of 65535 descriptors.
        for bytes in [entries as u32 * 16, 65_535 * 16] {
            disk.descriptor(0, 0, (table, bytes, INDIRECT, 0))?;
            disk.offer(SIZE)?;
        }
        if let Some(reference) = disk.pages.references().get(TABLE).copied() {
            let first_page = PoolPage(first % 4096);
            disk.ask(Request::SharePages { first: first_page, count: 1, reference })?;
            let unshared = PoolPage(first / 2 % 4096);
            disk.ask(Request::UnsharePages { first: unshared, count: 1 + first % 2 })?;
        }
        first += 1;
        if first % 64 == 0 {
            disk.start()?;
        }
    }
    Ok(())
}

/// Keeps the ring full of write-zeroes requests over the whole disk.
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
        slice.context("the range is outside of the shared pages")?.copy_to(&mut used);
        let free = SIZE - disk.available.wrapping_sub(u16::from_le_bytes(used)).min(SIZE);
        match free {
            0 => std::thread::yield_now(),
            free => disk.offer(free)?,
        }
    }
    Ok(())
}

/// Notifies the doorbell of an empty queue without a pause.
fn doorbells(disk: &mut Disk, end: Instant) -> Result<()> {
    while Instant::now() < end {
        for _ in 0..64 {
            disk.events.notify(disk.doorbell)?;
        }
    }
    Ok(())
}

/// Sends requests as fast as the device answers, events for queues that do not exist, and writes
/// to XenStore.
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

/// Overwrites rings, headers and tables with pseudorandom words, while the device reads them.
fn scribble(disk: &mut Disk, end: Instant) -> Result<()> {
    let mut state = 0x9e37_79b9u32;
    while Instant::now() < end {
        for _ in 0..512 {
            // xorshift32
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let at = state as usize / 4 * 4 % (usize::from(PAGES) * PAGE - 4);
            // About half of the words are the upper or the lower half of an address.
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
