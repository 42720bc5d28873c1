//! A disk with the driver that uses it, whose processes are killed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::num::Wrapping;
use std::ops::Range;
use std::time::Duration;

use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, VolatileMemory};
use xen::{DomId, Xen};
use xen_sim::{GuestPort, Hypervisor, SimEvents};
use xen_virtiod::device::blk::{Caching, SECTOR_SIZE};
use xen_virtiod::record::{DriverSetup, QueueRecord, Record};

use crate::model::{Model, Stamp};
use crate::random::Random;
use crate::simulated::device::{Device, IN_MEMORY};
use crate::simulated::guest::{Driver, ENTRIES, GUEST, SLOTS};
use crate::simulated::mark::section;
use crate::trace::{Moment, Phase, Section, Trace};
use crate::tracer::Child;

/// Number of sectors of the disk: so few that most requests overlap others.
const SECTORS: usize = 32;
/// Maximum number of sectors of a request: a page.
const MOST_SECTORS: usize = 8;
/// Stamps of the disk's first content; those of writes are smaller.
const FIRST: Stamp = 1 << 63;
/// Bytes of a range of a write-zeroes request.
const RANGE: u32 = 16;
/// Offset of the elements in the used ring.
const ELEMENTS: usize = 4;
/// What the driver writes where the device writes, before each process: no status and no stamp.
const GARBAGE: u8 = 0xee;

/// Whether writes are durable when they are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// After a flush.
    Back,
    /// Each: the driver knows no flush.
    Through,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// Done by the disk's own thread, so that later requests are answered before it.
    Zero,
    Flush,
}

impl Kind {
    fn any(random: &mut Random) -> Self {
        match random.below(10) {
            0..4 => Self::Write,
            4..8 => Self::Read,
            8 => Self::Zero,
            _ => Self::Flush,
        }
    }
}

/// A request that the driver waits for.
struct Awaited {
    kind: Kind,
    /// Of the write.
    number: u64,
    sectors: Range<usize>,
    /// For each sector of a read, its possible contents.
    possible: Vec<Vec<Stamp>>,
}

/// What a process found when it was started.
#[derive(Default)]
struct Before {
    taken: Vec<u16>,
    used: u16,
    elements: Vec<u64>,
}

/// The disk and its driver.
pub(super) struct Setting {
    hypervisor: Hypervisor,
    driver: Driver,
    port: GuestPort,
    image: NamedTempFile,
    record_file: NamedTempFile,
    queue: QueueRecord,
    model: Model,
    /// By slots, which are also the heads of their chains.
    awaited: BTreeMap<u16, Awaited>,
    /// The index of the used ring up to which the driver has taken answers.
    seen: u16,
    writes: u64,
    before: Before,
    /// Number of requests that the driver has submitted.
    pub(super) requests: usize,
}

impl Setting {
    /// A disk that a first process has started, and is gone.
    pub(super) fn new(mode: WriteMode) -> Self {
        let hypervisor = Hypervisor::default();
        let driver = Driver::new(&hypervisor);
        let port = driver.port();
        let mut image = NamedTempFile::new_in(IN_MEMORY).unwrap();
        let first = |sector: usize| FIRST | sector as u64;
        (0..SECTORS).for_each(|sector| image.write_all(&content(first(sector))).unwrap());
        let record_file = NamedTempFile::new_in(IN_MEMORY).unwrap();
        let starter = Child::start(|| {
            let events = hypervisor.events(DomId(GUEST)).unwrap();
            let mut disk = Device::disk(image.path(), Caching::PageCache, &hypervisor, events);
            let file = record_file.reopen().unwrap();
            let mut record = Record::create(file, disk.transport.queue_sizes()).unwrap();
            disk.transport.keep(&record);
            let refused = match mode {
                WriteMode::Back => 0,
                WriteMode::Through => 1 << VIRTIO_BLK_F_FLUSH,
            };
            disk.negotiate(&driver, port.port, refused);
            assert!(disk.transport.is_recorded());
            save(&mut disk, &mut record);
        });
        starter.finish();
        let record = Record::open(record_file.reopen().unwrap()).unwrap();
        Self {
            hypervisor,
            driver,
            port,
            image,
            record_file,
            queue: record.queue(0).unwrap(),
            model: Model::new((0..SECTORS).map(first)),
            awaited: BTreeMap::new(),
            seen: 0,
            writes: 0,
            before: Before::default(),
            requests: 0,
        }
    }

    /// Submits up to `count` requests, as many as there are free slots.
    pub(super) fn submit(&mut self, count: usize, random: &mut Random) {
        self.submit_all((0..count).map(|_| None), random);
    }

    /// Submits requests of these kinds.
    pub(super) fn submit_kinds(&mut self, kinds: &[Kind], random: &mut Random) {
        self.submit_all(kinds.iter().copied().map(Some), random);
    }

    fn submit_all(&mut self, kinds: impl Iterator<Item = Option<Kind>>, random: &mut Random) {
        let mut slots = Vec::new();
        for kind in kinds {
            let free: Vec<_> = (0..SLOTS).filter(|slot| !self.awaited.contains_key(slot)).collect();
            if free.is_empty() {
                break;
            }
            let slot = *random.choose(&free);
            let kind = kind.unwrap_or_else(|| Kind::any(random));
            let count = 1 + random.below(MOST_SECTORS);
            let start = random.below(SECTORS + 1 - count);
            self.write_request(slot, kind, start..start + count);
            slots.push(slot);
        }
        self.requests += slots.len();
        self.driver.make_available(slots.into_iter());
    }

    /// Writes a request into a slot.
    fn write_request(&mut self, slot: u16, kind: Kind, sectors: Range<usize>) {
        let (start, bytes) = (sectors.start as u64, (sectors.len() * SECTOR_SIZE as usize) as u32);
        self.writes += 1;
        let number = self.writes;
        let stamp = move |index: usize| match kind {
            Kind::Zero => 0,
            _ => number << 8 | index as u64,
        };
        let mut possible = Vec::new();
        let data = self.driver.data(slot);
        let (command, sector, bytes) = match kind {
            Kind::Read => {
                let stamps = sectors.clone().map(|sector| self.model.stamps(sector).collect());
                possible = stamps.collect();
                (VIRTIO_BLK_T_IN, start, bytes)
            }
            Kind::Write => {
                let content = (0..sectors.len()).flat_map(|index| content(stamp(index)));
                data.copy_from(&content.collect::<Vec<_>>());
                (VIRTIO_BLK_T_OUT, start, bytes)
            }
            Kind::Zero => {
                data.write_obj(start, 0).unwrap();
                data.write_obj(sectors.len() as u64, 8).unwrap();
                (VIRTIO_BLK_T_WRITE_ZEROES, 0, RANGE)
            }
            Kind::Flush => (VIRTIO_BLK_T_FLUSH, 0, 0),
        };
        self.driver.write_request(slot, command, sector, bytes);
        if matches!(kind, Kind::Write | Kind::Zero) {
            self.model.submit(number, sectors.clone(), stamp);
            for read in self.awaited.values_mut().filter(|awaited| awaited.kind == Kind::Read) {
                let both =
                    read.sectors.start.max(start as usize)..read.sectors.end.min(sectors.end);
                for sector in both {
                    read.possible[sector - read.sectors.start].push(stamp(sector - sectors.start));
                }
            }
        }
        self.awaited.insert(slot, Awaited { kind, number, sectors, possible });
    }

    /// A process that takes the device over, at its first mark.
    fn start(&mut self) -> Child {
        for (slot, awaited) in &self.awaited {
            self.driver.status(*slot).copy_from(&[GARBAGE]);
            if awaited.kind == Kind::Read {
                self.driver.data(*slot).copy_from(&[GARBAGE; MOST_SECTORS * SECTOR_SIZE as usize]);
            }
        }
        self.before = Before {
            taken: self.queue.taken(),
            used: self.driver.used(),
            elements: self.elements(self.driver.used()),
        };
        let child = Child::start(|| self.live());
        child.first_mark().unwrap();
        child
    }

    /// The life of the process.
    fn live(&self) {
        let events = self.hypervisor.events(DomId(GUEST)).unwrap();
        let path = self.image.path();
        let mut disk = Device::disk(path, Caching::PageCache, &self.hypervisor, events);
        let file = self.record_file.reopen().unwrap();
        section(|| {
            let mut record = Record::open(file).unwrap();
            let setup = record.setup().unwrap();
            let Device { transport, events, .. } = &mut disk;
            assert!(transport.can_be_taken_over());
            transport.take_over(&setup, &record, None, events).unwrap();
            save(&mut disk, &mut record);
        });
        section(|| {
            disk.serve_sources();
            disk.wait(&self.driver);
        });
    }

    /// Lets a process serve the disk, which dies at `place` if it comes there: returns what it was
    /// doing then, and `None` if all requests are answered.
    pub(super) fn serve(&mut self, place: Option<&Moment>) -> Option<Phase> {
        let child = self.start();
        let is_in = |section| place.filter(|place| place.section == section);
        let is_reached = |place: &Moment| child.reaches(place.address, place.nth);
        match is_in(Section::TakeOver).map(is_reached) {
            Some(true) => return Some(self.die(child, Phase::TakeOver)),
            Some(false) => {}
            None => child.next_mark(),
        }
        assert!(self.is_notified(), "the driver was not notified of what it may have missed");
        child.next_mark();
        match is_in(Section::Serving).map(is_reached) {
            Some(true) => {
                let phase = self.phase();
                return Some(self.die(child, phase));
            }
            Some(false) => {}
            None => child.next_mark(),
        }
        child.finish();
        let answered = self.driver.used() != self.before.used;
        assert!(self.is_notified() || !answered, "the driver was not notified of the answers");
        self.take_answers();
        assert!(self.awaited.is_empty(), "{} request(s) are not answered", self.awaited.len());
        let left = self.queue.taken();
        assert!(left.is_empty(), "chains {left:?} are marked, and were given back");
        assert_eq!(self.queue.used(), Wrapping(self.driver.used()), "the record's index");
        self.check_image();
        None
    }

    fn die(&mut self, child: Child, phase: Phase) -> Phase {
        child.kill();
        self.is_notified();
        self.take_answers();
        phase
    }

    /// Whether the driver was notified since the last call.
    fn is_notified(&self) -> bool {
        self.port.wait_for(Duration::ZERO)
    }

    /// Number of requests that the next process does again: they were taken, and not given back.
    pub(super) fn done_again(&self) -> usize {
        self.queue.taken().iter().filter(|head| self.awaited.contains_key(head)).count()
    }

    /// Number of requests that the driver waits for.
    pub(super) fn awaited(&self) -> usize {
        self.awaited.len()
    }

    /// The elements of the used ring from an index on, as many as may be written.
    fn elements(&self, used: u16) -> Vec<u64> {
        let ring = self.driver.used_ring();
        let elements = ring.get_array_ref::<u64>(ELEMENTS, ENTRIES.into()).unwrap();
        let slot = |ahead| usize::from(used.wrapping_add(ahead) % ENTRIES);
        (0..SLOTS).map(|ahead| elements.load(slot(ahead))).collect()
    }

    /// What a process is doing that serves the disk.
    fn phase(&self) -> Phase {
        let (used, taken) = (self.driver.used(), self.queue.taken());
        if self.queue.used() != Wrapping(used) {
            return Phase::GivingBack;
        }
        if taken.is_empty() {
            return Phase::Elsewhere;
        }
        if used == self.before.used && self.elements(used) != self.before.elements {
            return Phase::GivingBack;
        }
        let has_status =
            |slot: &&u16| self.driver.status(**slot).read_obj::<u8>(0).unwrap() != GARBAGE;
        match taken.iter().find(has_status) {
            Some(_) => Phase::Moving,
            None if taken != self.before.taken => Phase::Taking,
            None => Phase::Elsewhere,
        }
    }

    /// Steps a process through a section; it goes on to the end.
    pub(super) fn trace(&mut self, name: &'static str, section: Section) -> Trace {
        let mut trace = Trace::new(name, section, self.awaited.len());
        let child = self.start();
        if section == Section::Serving {
            child.next_mark();
            child.next_mark();
        }
        let mut steps = Vec::new();
        child.steps(|address| {
            let phase = match section {
                Section::TakeOver => Phase::TakeOver,
                Section::Serving => self.phase(),
            };
            steps.push((address, phase));
        });
        trace.add(steps.into_iter());
        if section == Section::TakeOver {
            child.next_mark();
            child.next_mark();
        }
        child.finish();
        self.is_notified();
        self.take_answers();
        self.check_image();
        trace
    }

    /// Takes the answers that the used ring has.
    fn take_answers(&mut self) {
        let used = self.driver.used();
        let count = used.wrapping_sub(self.seen);
        let elements = self.elements(self.seen);
        assert!(usize::from(count) <= elements.len(), "{count} used elements, more than requests");
        for element in &elements[..count.into()] {
            let (head, written) = (*element as u32, (*element >> 32) as u32);
            let awaited =
                u16::try_from(head).ok().and_then(|slot| self.awaited.remove_entry(&slot));
            let (slot, awaited) = awaited.unwrap_or_else(|| {
                panic!("chain {head} was given back twice, or never made available")
            });
            self.check_answer(slot, &awaited, written);
        }
        self.seen = used;
    }

    fn check_answer(&mut self, slot: u16, awaited: &Awaited, written: u32) {
        let Awaited { kind, number, sectors, possible } = awaited;
        let status: u8 = self.driver.status(slot).read_obj(0).unwrap();
        let data = if *kind == Kind::Read { sectors.len() * SECTOR_SIZE as usize } else { 0 };
        let answer = (status, written as usize);
        assert_eq!(answer, (0, data + 1), "status and length of {kind:?} in slot {slot}");
        match kind {
            Kind::Read => {
                let mut bytes = vec![0; data];
                self.driver.data(slot).copy_to(&mut bytes);
                let contents = bytes.chunks_exact(SECTOR_SIZE as usize);
                for ((sector, bytes), possible) in sectors.clone().zip(contents).zip(possible) {
                    check_content(&format!("a read of sector {sector}"), bytes, possible);
                }
            }
            Kind::Write | Kind::Zero => self.model.answer(*number, sectors.clone()),
            Kind::Flush => {}
        }
    }

    /// Checks the whole image, while nothing is in flight.
    fn check_image(&mut self) {
        let image = fs::read(self.image.path()).unwrap();
        assert_eq!(image.len(), self.model.size() * SECTOR_SIZE as usize);
        for (sector, bytes) in image.chunks_exact(SECTOR_SIZE as usize).enumerate() {
            let possible: Vec<_> = self.model.stamps(sector).collect();
            let stamp = check_content(&format!("sector {sector} of the image"), bytes, &possible);
            self.model.conclude(sector, stamp);
        }
    }
}

/// Saves the driver's set-up, as a connection does.
fn save(disk: &mut Device<SimEvents>, record: &mut Record) {
    let mut setup = DriverSetup::default();
    disk.transport.record(&mut setup);
    record.save(&setup).unwrap();
    disk.transport.resume();
}

/// A sector with this stamp.
fn content(stamp: Stamp) -> [u8; SECTOR_SIZE as usize] {
    let mut bytes = [0; SECTOR_SIZE as usize];
    bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&stamp.to_le_bytes()));
    bytes
}

/// Checks that a sector has one of these stamps, and returns it.
fn check_content(what: &str, bytes: &[u8], possible: &[Stamp]) -> Stamp {
    let found = possible.iter().find(|stamp| content(**stamp) == bytes);
    *found.unwrap_or_else(|| {
        let (first, last) = (&bytes[..8], &bytes[bytes.len() - 8..]);
        panic!("{what} has {first:x?} … {last:x?}, and may have the stamps {possible:x?}")
    })
}
