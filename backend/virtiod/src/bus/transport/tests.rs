//! Tests of the transport with a device that only records its calls.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::message::{Event, StateOperation, VqueueFlags};
use protocol::status::{ACKNOWLEDGE, DRIVER, REQUIRED_FEATURES};

use super::service::Meaningless;
use super::*;
use crate::bus::scheduler::clock::KernelClock;
use crate::bus::scheduler::clock::fake::FakeClock;
use crate::bus::scheduler::{Step, Woken};
use crate::device::{DeviceId, Fault, QueueContext, QueueSet};
use crate::dma::budget::GuestBudget;
use crate::dma::grants::GrantPlatform;
use xen::{Access, DomId, Xen};
use xen_sim::{Guest, Hypervisor, SimEvents, SimGrants};

const READY: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const CONFIG: [u8; 8] = *b"abcdefgh";
/// Length of the writable part of the configuration space.
const WRITABLE: usize = 6;
const QUEUES: u32 = 3;
const RING_RESET: u64 = 1 << F_RING_RESET;

/// A call of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Start(u64),
    Serve(usize),
    HandleSources,
    ResetQueue(usize),
    Write(usize, Vec<u8>),
}

/// The outcome of the device's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Starts {
    Well,
    Badly,
    /// The start changes the configuration.
    Changed,
}

struct Notes {
    calls: Arc<Mutex<Vec<Call>>>,
    config: [u8; 8],
    starts: Starts,
    changed: bool,
    /// So many times that the device is asked for completions, it has none.
    uncompleted: Arc<AtomicU32>,
}

impl Notes {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl VirtioDevice<DmaMemory<GrantPlatform<SimGrants>>> for Notes {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn kind(&self) -> &'static str {
        "notes"
    }

    fn features(&self) -> u64 {
        1
    }

    fn longest_request(&self) -> u64 {
        u64::MAX
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16; QUEUES as usize]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> bool {
        self.note(Call::Write(offset, data.to_vec()));
        let inside = offset + data.len() <= WRITABLE;
        if inside {
            self.config[offset..offset + data.len()].copy_from_slice(data);
        }
        inside
    }

    fn start(&mut self, features: u64) -> Result<(), Fault> {
        self.note(Call::Start(features));
        self.changed = self.starts == Starts::Changed;
        match self.starts {
            Starts::Badly => Err(Fault::Host("notes", std::io::Error::other("torn"))),
            Starts::Well | Starts::Changed => Ok(()),
        }
    }

    fn reset_queue(&mut self, index: usize) {
        self.note(Call::ResetQueue(index));
    }

    fn process(
        &mut self,
        index: usize,
        queues: &mut QueueContext<'_, DmaMemory<GrantPlatform<SimGrants>>>,
    ) -> Result<(), Fault> {
        self.note(Call::Serve(index));
        queues.mark_idle(index);
        // Reschedules a queue that cannot be served, as after a queue reset.
        queues.reschedule(QUEUES as usize);
        Ok(())
    }

    fn in_flight(&self) -> u32 {
        1
    }

    fn has_completions(&self) -> bool {
        self.uncompleted.fetch_sub(1, Ordering::Relaxed) == 0
    }

    fn handle_sources(
        &mut self,
        _: &mut QueueContext<'_, DmaMemory<GrantPlatform<SimGrants>>>,
    ) -> Result<(), Fault> {
        self.note(Call::HandleSources);
        Ok(())
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}

struct Bench {
    hypervisor: Hypervisor,
    guest: Guest,
    events: SimEvents,
    transport: Transport<GrantPlatform<SimGrants>, SimEvents>,
    calls: Arc<Mutex<Vec<Call>>>,
    uncompleted: Arc<AtomicU32>,
}

impl Bench {
    fn new(starts: Starts) -> Self {
        let (hypervisor, stats) = (Hypervisor::default(), Arc::new(DeviceStats::default()));
        let (guest, id) = (hypervisor.guest(1, 64), DomId(1));
        let events = hypervisor.events(id).unwrap();
        let platform = GrantPlatform::new(hypervisor.grants(id).unwrap());
        let (calls, uncompleted) = (Arc::default(), Arc::new(AtomicU32::new(u32::MAX)));
        let device = Notes {
            calls: Arc::clone(&calls),
            config: CONFIG,
            starts,
            changed: false,
            uncompleted: Arc::clone(&uncompleted),
        };
        let memory = DmaMemory::new(platform, Arc::clone(&stats), GuestBudget::alone());
        let (others, service) = (hypervisor.clone(), ServiceSettings::default());
        let open = Arc::new(move || others.events(id));
        let transport = Transport::new(Box::new(device), memory, &service, 264, open, stats);
        Self { hypervisor, guest, events, transport, calls, uncompleted }
    }

    /// A bench whose driver accepted `features` and set FEATURES_OK.
    fn negotiated(features: u64) -> Self {
        let mut bench = Self::new(Starts::Well);
        bench.accept(0, &features.to_le_bytes());
        assert_eq!(bench.set_status(READY).0, READY);
        bench
    }

    fn ask<R>(&mut self, request: Request<'_>, take: impl FnOnce(Response<'_>, Effects) -> R) -> R {
        let mut scratch = [0; protocol::page::SLOT_SIZE];
        let answered = self.transport.answer(request, &mut self.events, &mut scratch);
        take(answered.response, answered.effects)
    }

    fn accept(&mut self, first: u32, bytes: &[u8]) {
        self.ask(Request::SetDriverFeatures(FeatureBlocks::new(first, bytes)), |_, _| ());
    }

    /// Returns the resulting status and whether EVENT_CONFIG follows.
    fn set_status(&mut self, status: u32) -> (u32, bool) {
        self.ask(Request::SetDeviceStatus(status), |answer, effects| match answer {
            Response::SetDeviceStatus(status) => (status, effects.config),
            other => panic!("{other:?}"),
        })
    }

    /// Returns the response's generation and bytes; asserts that no event follows.
    fn write(&mut self, generation: u32, offset: u32, data: &[u8]) -> (u32, Vec<u8>) {
        let config = ConfigData { generation, offset, data };
        self.ask(Request::SetConfig(config), |answer, effects| match answer {
            Response::SetConfig(config) => {
                assert_eq!((config.offset, effects), (offset, Effects::default()));
                (config.generation, config.data.to_vec())
            }
            other => panic!("{other:?}"),
        })
    }

    fn read(&mut self) -> (u32, Vec<u8>) {
        let size = CONFIG.len() as u32;
        self.ask(Request::GetConfig { offset: 0, size }, |answer, _| match answer {
            Response::GetConfig(config) => (config.generation, config.data.to_vec()),
            other => panic!("{other:?}"),
        })
    }

    fn queue(&mut self, index: u32) -> VqueueState {
        self.ask(Request::GetVqueue { index }, |answer, _| match answer {
            Response::GetVqueue(queue) => queue,
            other => panic!("{other:?}"),
        })
    }

    fn set_queue(&mut self, update: VqueueUpdate) -> VqueueState {
        self.ask(Request::SetVqueue(update), |answer, _| assert_eq!(answer, Response::SetVqueue));
        self.queue(update.index)
    }

    fn reset_queue(&mut self, index: u32) -> VqueueState {
        let request = Request::ResetVqueue { index };
        self.ask(request, |answer, _| assert_eq!(answer, Response::ResetVqueue));
        self.queue(index)
    }

    /// The setup of a queue in newly granted pages.
    fn update(&mut self, index: u32) -> VqueueUpdate {
        let mut area = || {
            let page = self.guest.allocate();
            let first = self.guest.grant(&[page], Access::ReadWrite);
            self.guest.address(page, first)
        };
        VqueueUpdate {
            index,
            flags: VqueueFlags(VqueueFlags::ENABLE),
            size: 16,
            reserved: 0,
            descriptor: area(),
            driver: area(),
            device: area(),
        }
    }

    fn bind(&mut self, index: u32, port: RemotePort) -> BindOutcome {
        self.ask(Request::BindQueue { index, port: port.0 }, |answer, _| match answer {
            Response::BindQueue { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        })
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Serves pending queues; returns the calls of the device.
    fn serve_waiting(&mut self) -> Vec<Call> {
        self.calls();
        self.iterate();
        self.calls()
    }

    /// Carries out the scheduler's steps until it sleeps.
    fn iterate(&mut self) {
        self.transport.scheduler().begin_iteration(Woken::default(), &KernelClock);
        loop {
            match self.transport.scheduler().next(&KernelClock) {
                Step::Sleep => return,
                step => {
                    self.transport.carry_out(step, &mut self.events, &KernelClock);
                }
            }
        }
    }

    fn has_work(&self) -> bool {
        self.transport.longest_sleep(&KernelClock) == Some(Duration::ZERO)
    }

    fn mapped(&self) -> usize {
        self.hypervisor.mapped_pages(DomId(1))
    }
}

#[test]
fn spec_6_6_generation_of_a_write_is_ignored() {
    let mut bench = Bench::new(Starts::Well);
    for (generation, number) in [0, 1, 7, u32::MAX].into_iter().zip(1..) {
        let data = [b'0' + number as u8];
        assert_eq!(bench.write(generation, 2, &data), (number, data.to_vec()));
        assert_eq!((bench.read().0, bench.read().1[2]), (number, data[0]));
    }
}

#[test]
fn spec_6_6_write_is_applied_whole_or_not_at_all() {
    let mut bench = Bench::new(Starts::Well);
    // Beyond the space, across its end, and with an overflowing end: the device is not called.
    for (offset, length) in [(8, 1), (5, 4), (0, 9), (u32::MAX, 1), (u32::MAX - 3, 8), (9, 0)] {
        assert_eq!(bench.write(0, offset, &vec![1; length]), (0, Vec::new()));
    }
    // An empty write is not a write.
    assert_eq!(bench.write(0, 0, &[]), (0, Vec::new()));
    assert_eq!(bench.calls(), []);
    // A write across the end of the writable part changes nothing.
    assert_eq!(bench.write(0, 4, b"1234"), (0, Vec::new()));
    assert_eq!(bench.calls(), [Call::Write(4, b"1234".to_vec())]);
    assert_eq!(bench.read(), (0, CONFIG.to_vec()));
    assert_eq!(bench.write(0, 2, b"1234"), (1, b"1234".to_vec()));
    assert_eq!(bench.read(), (1, b"ab1234gh".to_vec()));
}

#[test]
fn spec_6_6_configuration_change_at_start_sends_an_event() {
    let mut bench = Bench::new(Starts::Changed);
    bench.accept(0, &REQUIRED_FEATURES.to_le_bytes());
    assert_eq!(bench.set_status(READY | DRIVER_OK), (READY | DRIVER_OK, true));
    assert_eq!(
        (bench.transport.status_and_generation(), bench.read().0),
        ((READY | DRIVER_OK, 1), 1)
    );
}

#[test]
fn spec_6_5_failed_start_sends_an_event() {
    let mut bench = Bench::new(Starts::Badly);
    bench.accept(0, &REQUIRED_FEATURES.to_le_bytes());
    assert_eq!(bench.set_status(READY), (READY, false));
    let failed = READY | DRIVER_OK | DEVICE_NEEDS_RESET;
    assert_eq!(bench.set_status(READY | DRIVER_OK), (failed, true));
    assert_eq!(bench.transport.status_and_generation().0, failed);
    // A second DRIVER_OK does not start the device again.
    assert_eq!(bench.set_status(READY | DRIVER_OK), (failed, false));
    assert_eq!(bench.set_status(0), (0, false));
}

#[test]
fn spec_6_8_driver_sets_status_bits_and_clears_none() {
    let mut bench = Bench::new(Starts::Well);
    bench.accept(0, &REQUIRED_FEATURES.to_le_bytes());
    let steps = [
        (ACKNOWLEDGE, ACKNOWLEDGE),
        // DRIVER_OK without FEATURES_OK; SUSPEND, an unknown bit and bits that only a device sets.
        (DRIVER | DRIVER_OK, ACKNOWLEDGE | DRIVER),
        (16 | 32 | DEVICE_NEEDS_RESET, ACKNOWLEDGE | DRIVER),
        // Not 0, so no reset, whichever byte is set.
        (0x100, ACKNOWLEDGE | DRIVER),
        (0x8000_0000, ACKNOWLEDGE | DRIVER),
        (FEATURES_OK, READY),
        (ACKNOWLEDGE | DRIVER, READY),
        (DRIVER_OK, READY | DRIVER_OK),
        (ACKNOWLEDGE, READY | DRIVER_OK),
        (FAILED, READY | DRIVER_OK | FAILED),
        (0, 0),
    ];
    for (written, is) in steps {
        assert_eq!(bench.set_status(written), (is, false), "{written:#x}");
    }
    assert_eq!(bench.calls(), [Call::Start(REQUIRED_FEATURES)], "started once");
}

#[test]
fn spec_6_8_features_are_fixed_from_features_ok_until_reset() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES);
    bench.set_status(ACKNOWLEDGE | DRIVER);
    bench.accept(0, &[0xff; 8]);
    assert_eq!(bench.set_status(READY | DRIVER_OK).0, READY | DRIVER_OK);
    assert_eq!(bench.calls(), [Call::Start(REQUIRED_FEATURES)]);
}

#[test]
fn spec_6_2_feature_bits_from_64_on_are_refused() {
    let mut bench = Bench::new(Starts::Well);
    for (first, further) in [(2, vec![1, 0, 0, 0]), (u32::MAX, vec![0, 0, 0, 0, 1, 0, 0, 0])] {
        bench.accept(0, &REQUIRED_FEATURES.to_le_bytes());
        bench.accept(first, &further);
        assert_eq!(bench.set_status(READY).0, ACKNOWLEDGE | DRIVER, "{first}");
        // Until the driver clears them in the same blocks.
        bench.accept(0, &REQUIRED_FEATURES.to_le_bytes());
        assert_eq!(bench.set_status(READY).0, ACKNOWLEDGE | DRIVER, "{first}");
        bench.accept(first, &vec![0; further.len()]);
        assert_eq!(bench.set_status(READY).0, READY, "{first}");
        bench.set_status(0);
    }
    // In one message with offered ones.
    bench.accept(0, &[REQUIRED_FEATURES.to_le_bytes(), 1u64.to_le_bytes()].concat());
    assert_eq!(bench.set_status(READY).0, ACKNOWLEDGE | DRIVER);
}

#[test]
fn spec_5_5_nonexistent_feature_blocks_are_zero() {
    let mut bench = Bench::new(Starts::Well);
    let mut blocks = |first, count| {
        bench.ask(Request::GetDeviceFeatures { first, count }, |answer, _| match answer {
            Response::GetDeviceFeatures(blocks) => {
                (blocks.first, blocks.iter().map(|(_, bits)| bits).collect::<Vec<_>>())
            }
            other => panic!("{other:?}"),
        })
    };
    let high = ((REQUIRED_FEATURES | RING_RESET) >> 32) as u32;
    assert_eq!(blocks(1, 3), (1, vec![high, 0, 0]));
    assert_eq!(blocks(u32::MAX, 2), (u32::MAX, vec![0, 0]));
    assert_eq!(blocks(0, u32::MAX), (0, vec![]), "more than a message holds");
    assert_eq!(blocks(u32::MAX, u32::MAX), (u32::MAX, vec![]));
}

#[test]
fn spec_6_1_requests_from_before_driver_ok_are_served() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES);
    for index in [0, 2] {
        let update = bench.update(index);
        assert!(bench.set_queue(update).enabled);
    }
    assert_eq!(bench.serve_waiting(), []);
    bench.set_status(READY | DRIVER_OK);
    assert!(bench.has_work());
    assert_eq!(bench.serve_waiting(), [Call::Serve(0), Call::Serve(2)]);
    // As is a queue enabled later.
    let update = bench.update(1);
    bench.set_queue(update);
    assert_eq!(bench.serve_waiting(), [Call::Serve(1)]);
    assert_eq!(bench.serve_waiting(), []);
}

#[test]
fn spec_5_3_invalid_events_do_not_reach_the_device() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES);
    let update = bench.update(0);
    bench.set_queue(update);
    bench.set_status(READY | DRIVER_OK);
    bench.serve_waiting();
    let mut handle = |event| bench.transport.handle_event(event);
    for index in [QUEUES, 63, 64, 65, 1 << 31, u32::MAX] {
        let handled = handle(Event::Avail { index, next_offset_wrap: u32::MAX });
        assert_eq!(handled, Err(Meaningless::NoSuchQueue(index)));
    }
    // A disabled queue has nothing to serve.
    assert_eq!(handle(Event::Avail { index: 1, next_offset_wrap: 0 }), Ok(()));
    let config = protocol::message::ConfigChange::anywhere(1);
    assert_eq!(handle(Event::Config { status: 64, config }), Err(Meaningless::OfADevice));
    assert_eq!(handle(Event::Used { index: 0 }), Err(Meaningless::OfADevice));
    assert_eq!(bench.serve_waiting(), []);
    bench.transport.handle_event(Event::Avail { index: 0, next_offset_wrap: 0 }).unwrap();
    assert_eq!(bench.serve_waiting(), [Call::Serve(0)]);
}

#[test]
fn spec_6_3_nonexistent_queue_reads_as_zeros() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES | RING_RESET);
    for index in [QUEUES, 64, 1 << 31, u32::MAX] {
        let none = VqueueState {
            index,
            max_size: 0,
            size: 0,
            enabled: false,
            descriptor: 0,
            driver: 0,
            device: 0,
        };
        assert_eq!(bench.queue(index), none);
        let update = bench.update(index);
        assert_eq!(bench.set_queue(update), none);
        assert_eq!(bench.reset_queue(index), none);
        assert_eq!(bench.bind(index, RemotePort(1)), BindOutcome::Refused);
    }
    assert_eq!((bench.mapped(), bench.calls()), (0, vec![]));
}

#[test]
fn spec_6_3_update_with_reserved_values_changes_nothing() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES);
    let good = bench.update(0);
    let before = bench.queue(0);
    for bad in [
        VqueueUpdate { reserved: 1, ..good },
        VqueueUpdate { reserved: 1 << 31, ..good },
        VqueueUpdate { flags: VqueueFlags(3), ..good },
        VqueueUpdate { flags: VqueueFlags(1 | 1 << 6), ..good },
        VqueueUpdate { flags: VqueueFlags(1 | 1 << 31), ..good },
        // Nothing changes, though the update would not enable the queue either.
        VqueueUpdate { flags: VqueueFlags(0), reserved: 1, ..good },
        VqueueUpdate { flags: VqueueFlags(2 | 1 << 9), ..good },
    ] {
        assert_eq!(bench.set_queue(bad), before, "{bad:?}");
    }
    assert!(bench.set_queue(good).enabled);
}

#[test]
fn spec_6_3_queue_is_set_up_field_by_field() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES);
    let all = bench.update(0);
    let flags = |flags| VqueueUpdate { flags: VqueueFlags(flags), ..all };
    let (size, descriptor, driver, device) = (1 << 2, 1 << 3, 1 << 4, 1 << 5);
    // The size and the descriptor area; the state is kept, or kept disabled.
    assert_eq!(bench.set_queue(flags(2 | driver | device)).size, 16);
    let half = bench.set_queue(flags(size | descriptor | driver));
    assert_eq!((half.descriptor, half.driver, half.device), (all.descriptor, 0, all.device));
    // The setup is incomplete: enabling it changes nothing.
    assert_eq!(bench.set_queue(flags(1 | size | descriptor | driver | device)), half);
    assert_eq!(bench.mapped(), 0);
    let whole = bench.set_queue(flags(1 | size | descriptor | device));
    assert!(whole.enabled && whole.driver == all.driver);
    assert_eq!(bench.mapped(), 3);
}

#[test]
fn spec_6_3_only_a_reset_changes_an_enabled_queue() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES);
    let first = bench.update(0);
    let enabled = bench.set_queue(first);
    let other = bench.update(0);
    for flags in [0, 1, 2, 0x3c] {
        // The last one keeps a queue disabled that is enabled.
        assert_eq!(bench.set_queue(VqueueUpdate { flags: VqueueFlags(flags), ..other }), enabled);
    }
    // The same update again, and updates without a change.
    for flags in [1, 1 | 0x3c, 2 | 0x3c] {
        assert_eq!(bench.set_queue(VqueueUpdate { flags: VqueueFlags(flags), ..first }), enabled);
    }
    assert_eq!(bench.mapped(), 3);
    assert_eq!(VqueueFlags(0x3c).operation(), Some(StateOperation::KeepDisabled));
}

#[test]
fn spec_6_7_queue_reset_without_the_feature_is_ignored() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES);
    let update = bench.update(0);
    let enabled = bench.set_queue(update);
    assert_eq!(bench.reset_queue(0), enabled);
    assert_eq!((bench.mapped(), bench.calls()), (3, vec![]));
    // Accepted, but FEATURES_OK is not set.
    bench.set_status(0);
    bench.accept(0, &(REQUIRED_FEATURES | RING_RESET).to_le_bytes());
    bench.reset_queue(0);
    assert_eq!(bench.calls(), []);
}

#[test]
fn spec_6_7_reset_queue_belongs_to_the_driver() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES | RING_RESET);
    let (first, second) = (bench.update(0), bench.update(1));
    bench.set_queue(first);
    bench.set_queue(second);
    let ports = [bench.guest.port(), bench.guest.port()];
    assert_eq!(bench.bind(0, ports[0].port), BindOutcome::Bound);
    bench.set_status(READY | DRIVER_OK);
    assert_eq!(bench.bind(0, ports[1].port), BindOutcome::Refused, "it is enabled");
    let bound = bench.hypervisor.bound_ports();

    // Before the requests in it are served.
    let reset = bench.reset_queue(0);
    assert_eq!(bench.calls().last(), Some(&Call::ResetQueue(0)));
    let new = VqueueState { size: 0, enabled: false, descriptor: 0, driver: 0, device: 0, ..reset };
    assert_eq!((reset, reset.max_size), (new, 16));
    assert_eq!((bench.mapped(), bench.hypervisor.bound_ports()), (3, bound - 1));
    assert_eq!(bench.serve_waiting(), [Call::Serve(1)]);
    assert!(bench.queue(1).enabled, "the other queue stays enabled");

    // Again, with another doorbell and other pages; and once more while disabled.
    assert_eq!(bench.bind(0, ports[1].port), BindOutcome::Bound);
    let third = bench.update(0);
    assert!(bench.set_queue(third).enabled);
    assert_eq!(bench.serve_waiting(), [Call::Serve(0)]);
    assert!(!bench.reset_queue(0).enabled && !bench.reset_queue(0).enabled);
    assert_eq!(bench.mapped(), 3);
}

#[test]
fn spec_6_4_reset_releases_everything() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES | RING_RESET);
    for index in 0..QUEUES {
        let update = bench.update(index);
        assert!(bench.set_queue(update).enabled);
    }
    bench.set_status(READY | DRIVER_OK);
    assert_eq!(bench.set_status(0), (0, false));
    assert_eq!((bench.mapped(), bench.has_work()), (0, false));
    // The features too: the driver must accept them again.
    assert_eq!(bench.set_status(READY).0, ACKNOWLEDGE | DRIVER);
}

/// With any number in any field, in every state: every request gets a response, and nothing panics.
#[test]
fn any_number_in_any_field_gets_a_response() {
    let numbers =
        [0, 1, 2, 3, 15, 16, 63, 64, 65, 255, 256, 1 << 16, 1 << 31, u32::MAX - 1, u32::MAX];
    for state in [0, READY, READY | DRIVER_OK] {
        for first in numbers {
            for second in numbers {
                let mut bench = Bench::negotiated(REQUIRED_FEATURES | RING_RESET);
                let update = bench.update(first % QUEUES);
                bench.set_queue(update);
                bench.set_status(state);
                any_request(&mut bench, first, second);
            }
        }
    }
}

fn any_request(bench: &mut Bench, a: u32, b: u32) {
    let (data, wide) = ([0xff; 8], u64::from(a) << 32 | u64::from(b));
    let update = VqueueUpdate {
        index: a,
        flags: VqueueFlags(b),
        size: b,
        reserved: 0,
        descriptor: wide,
        driver: wide | 1 << 63,
        device: u64::MAX,
    };
    let requests = [
        Request::GetDeviceFeatures { first: a, count: b },
        Request::SetDriverFeatures(FeatureBlocks::new(a, &data)),
        Request::GetConfig { offset: a, size: b },
        Request::SetConfig(ConfigData { generation: b, offset: a, data: &data }),
        Request::GetVqueue { index: a },
        Request::SetVqueue(update),
        Request::BindQueue { index: a, port: b },
        Request::SharePages { first: PoolPage(a), count: b.min(64), reference: GrantRef(b) },
        Request::UnsharePages { first: PoolPage(a), count: b.min(64) },
        Request::UnsharePages { first: PoolPage(b), count: a },
        Request::ResetVqueue { index: a },
        Request::GetShm { shmid: a },
        Request::Ping(a),
        Request::SetDeviceStatus(a),
    ];
    for request in requests {
        bench.ask(request, |_, _| ());
        let _ = bench.transport.handle_event(Event::Avail { index: a, next_offset_wrap: b });
        bench.iterate();
    }
    bench.set_status(0);
    assert_eq!(bench.mapped(), 0);
}

#[test]
fn enabling_queues_of_a_device_that_needs_a_reset_does_not_hold_the_iteration() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES | RING_RESET);
    bench.set_status(READY | DRIVER_OK);
    bench.iterate();
    bench.transport.fail(&Fault::Internal("a test's"));
    let update = bench.update(0);
    let clock = FakeClock::default();
    bench.transport.scheduler().begin_iteration(Woken::default(), &clock);
    for _ in 0..1000 {
        // Messages that a connection answers between two steps.
        bench.reset_queue(0);
        assert!(bench.set_queue(update).enabled);
        clock.pass(Duration::from_millis(1));
        match bench.transport.scheduler().next(&clock) {
            Step::Sleep => return,
            step => bench.transport.carry_out(step, &mut bench.events, &clock),
        };
    }
    panic!("the iteration continues after a second");
}

#[test]
fn completions_of_the_storage_are_found_while_rings_are_polled() {
    let mut bench = Bench::negotiated(REQUIRED_FEATURES);
    let clock = FakeClock::default();
    let polls_then = |bench: &mut Bench| {
        bench.uncompleted.store(3, Ordering::Relaxed);
        bench.transport.scheduler().begin_iteration(Woken::default(), &clock);
        let poll = Step::Poll { queues: QueueSet::default(), polls: 10 };
        bench.transport.carry_out(poll, &mut bench.events, &clock);
        let left = bench.uncompleted.load(Ordering::Relaxed);
        (left, bench.transport.scheduler().next(&clock))
    };
    assert_eq!(polls_then(&mut bench), (3, Step::Sleep), "the device does not run yet");
    bench.set_status(READY | DRIVER_OK);
    bench.calls();
    // The poll that found it is the last one.
    assert_eq!(polls_then(&mut bench), (u32::MAX, Step::HandleSources));
    bench.transport.carry_out(Step::HandleSources, &mut bench.events, &clock);
    assert_eq!(bench.calls(), [Call::HandleSources]);
}
