//! Tests of the transport against the device's end of the page, message by message.

extern crate std;

use core::sync::atomic::{AtomicU32, Ordering};
use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use protocol::binding::negotiate;
use protocol::message::{
    BindOutcome, ChangedBytes, ConfigChange, ConfigData, DeviceInfo, FeatureBlocks, VqueueFlags,
    VqueueState, VqueueUpdate,
};
use protocol::page::SLOTS;

use super::*;

const MAX_SIZE: usize = 264;

/// A page, with the driver's end and the device's end of its queues.
struct Bench {
    page: Box<PageWords>,
    driver: Transport,
    to_driver: Producer,
    from_driver: Consumer,
}

impl Bench {
    fn new() -> Self {
        Self {
            page: Box::new(core::array::from_fn(|_| AtomicU32::new(0))),
            driver: Transport::new(negotiate(1, MAX_SIZE as u32, 0).unwrap()),
            to_driver: Producer::new(QueueDirection::DeviceToDriver),
            from_driver: Consumer::new(QueueDirection::DriverToDevice),
        }
    }

    fn send(&mut self, request: Request<'_>) -> Result<(), SendError> {
        self.driver.send(&self.page, request)
    }

    fn receive(&mut self) -> Received {
        self.driver.receive(&self.page)
    }

    /// Takes a message at the device's end.
    fn device_takes(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; SLOT_SIZE];
        match self.from_driver.pop(&self.page, MAX_SIZE, &mut buffer) {
            Ok(Popped::Message { size }) => Some(buffer[..size].to_vec()),
            other => {
                assert_eq!(other, Ok(Popped::Empty));
                None
            }
        }
    }

    fn device_sends(&mut self, message: Message<'_>) {
        let mut buffer = [0; SLOT_SIZE];
        let size = message.encode(&mut buffer).unwrap();
        self.to_driver.push(&self.page, &buffer[..size]).unwrap();
    }

    /// Sends `request`, answers with `response`, and returns the driver's result.
    fn exchange(
        &mut self,
        request: Request<'_>,
        response: Response<'_>,
    ) -> Result<Response<'_>, Mismatch> {
        self.send(request).unwrap();
        let sent = self.device_takes().unwrap();
        let sent = Message::decode(&sent).unwrap();
        assert_eq!(sent.body, Body::Request(request));
        self.device_sends(Message::response(sent.token, response));
        assert_eq!(self.receive(), Received::Answer);
        assert_eq!(self.receive(), Received::Drained { signal: false });
        self.driver.take_answer().unwrap()
    }
}

fn config(generation: u32, offset: u32, data: &[u8]) -> ConfigData<'_> {
    ConfigData { generation, offset, data }
}

fn queue(index: u32) -> VqueueState {
    VqueueState {
        index,
        max_size: 256,
        size: 0,
        enabled: false,
        descriptor: 0,
        driver: 0,
        device: 0,
    }
}

/// Every kind of request that the driver makes, with a matching answer.
fn fitting<'a>() -> Vec<(Request<'a>, Response<'a>)> {
    let info = DeviceInfo {
        device_id: 2,
        vendor_id: 0,
        uuid: [7; 16],
        feature_blocks: 2,
        config_size: 64,
        max_virtqueues: 1,
        admin_queue_start: 0,
        admin_queue_count: 0,
    };
    let update = VqueueUpdate {
        index: 1,
        flags: VqueueFlags(VqueueFlags::ENABLE),
        size: 256,
        reserved: 0,
        descriptor: 1 << 63,
        driver: 1 << 63,
        device: 1 << 63,
    };
    let features = FeatureBlocks::new(0, &[1, 0, 0, 0, 3, 0, 0, 0]);
    vec![
        (Request::GetDeviceInfo, Response::GetDeviceInfo(info)),
        (Request::GetDeviceFeatures { first: 0, count: 2 }, Response::GetDeviceFeatures(features)),
        (Request::SetDriverFeatures(features), Response::SetDriverFeatures),
        (Request::GetConfig { offset: 4, size: 3 }, Response::GetConfig(config(5, 4, b"abc"))),
        (Request::SetConfig(config(5, 4, b"abc")), Response::SetConfig(config(6, 4, b"abc"))),
        (Request::GetDeviceStatus, Response::GetDeviceStatus(15)),
        (Request::SetDeviceStatus(3), Response::SetDeviceStatus(3)),
        (Request::GetVqueue { index: 1 }, Response::GetVqueue(queue(1))),
        (Request::SetVqueue(update), Response::SetVqueue),
        (Request::ResetVqueue { index: 1 }, Response::ResetVqueue),
        (Request::GetShm { shmid: 3 }, Response::GetShm { shmid: 3, length: 0, address: 0 }),
        (Request::Ping(9), Response::Ping(9)),
        (
            Request::BindQueue { index: 1, port: 40 },
            Response::BindQueue { index: 1, outcome: BindOutcome::Bound },
        ),
    ]
}

#[test]
fn spec_5_1_matching_answers_are_accepted() {
    let mut bench = Bench::new();
    for (request, response) in fitting() {
        assert_eq!(bench.exchange(request, response), Ok(response));
    }
    assert_eq!(bench.driver.counters(), Counters::default());
}

#[test]
fn answer_of_another_kind_is_a_mismatch() {
    let mut bench = Bench::new();
    for (position, (request, _)) in fitting().into_iter().enumerate() {
        for (other, (_, response)) in fitting().into_iter().enumerate() {
            if position != other {
                assert_eq!(bench.exchange(request, response), Err(Mismatch));
            }
        }
    }
}

#[test]
fn answer_with_other_fields_is_a_mismatch() {
    let cases = [
        (Request::GetVqueue { index: 1 }, Response::GetVqueue(queue(0))),
        (Request::GetConfig { offset: 0, size: 2 }, Response::GetConfig(config(0, 1, b"ab"))),
        (Request::GetConfig { offset: 0, size: 2 }, Response::GetConfig(config(0, 0, b"abc"))),
        (Request::GetConfig { offset: 0, size: 2 }, Response::GetConfig(config(0, 0, b"a"))),
        (Request::SetConfig(config(0, 0, b"ab")), Response::SetConfig(config(0, 0, b"a"))),
        (
            Request::GetDeviceFeatures { first: 0, count: 2 },
            Response::GetDeviceFeatures(FeatureBlocks::new(0, &[0; 4])),
        ),
        (
            Request::GetDeviceFeatures { first: 0, count: 1 },
            Response::GetDeviceFeatures(FeatureBlocks::new(1, &[0; 4])),
        ),
        (Request::Ping(1), Response::Ping(2)),
        (
            Request::BindQueue { index: 1, port: 4 },
            Response::BindQueue { index: 2, outcome: BindOutcome::Bound },
        ),
    ];
    let mut bench = Bench::new();
    for (request, response) in cases {
        assert_eq!(bench.exchange(request, response), Err(Mismatch));
    }
}

#[test]
fn spec_5_4_second_request_waits_for_the_first_answer() {
    let mut bench = Bench::new();
    bench.send(Request::Ping(1)).unwrap();
    assert_eq!(bench.send(Request::Ping(2)), Err(SendError::Busy));
    assert_eq!(bench.driver.take_answer(), None);

    let sent = bench.device_takes().unwrap();
    let token = Message::decode(&sent).unwrap().token;
    bench.device_sends(Message::response(token, Response::Ping(1)));
    assert_eq!(bench.receive(), Received::Answer);
    assert_eq!(bench.send(Request::Ping(2)), Err(SendError::Busy));
    assert_eq!(bench.driver.take_answer(), Some(Ok(Response::Ping(1))));
    assert_eq!(bench.driver.take_answer(), None, "returned only once");
    assert_eq!(bench.send(Request::Ping(2)), Ok(()));
}

#[test]
fn spec_5_4_unexpected_responses_are_dropped() {
    let mut bench = Bench::new();
    bench.device_sends(Message::response(1, Response::Ping(1)));
    assert_eq!(bench.receive(), Received::Dropped, "no request is outstanding");

    bench.send(Request::Ping(1)).unwrap();
    let sent = bench.device_takes().unwrap();
    let token = Message::decode(&sent).unwrap().token;
    bench.device_sends(Message::response(token ^ 1, Response::Ping(1)));
    assert_eq!(bench.receive(), Received::Dropped, "another token");
    bench.device_sends(Message::response(token, Response::Ping(1)));
    bench.device_sends(Message::response(token, Response::Ping(1)));
    assert_eq!(bench.receive(), Received::Answer);
    assert_eq!(bench.receive(), Received::Dropped, "a second answer");
    assert_eq!(bench.driver.take_answer(), Some(Ok(Response::Ping(1))));
    assert_eq!(bench.driver.counters().unexpected, 3);
}

#[test]
fn spec_5_3_messages_that_only_a_driver_sends_are_dropped() {
    let mut bench = Bench::new();
    let avail = Event::Avail { index: 0, next_offset_wrap: 0 };
    bench.device_sends(Message::event(avail));
    bench.device_sends(Message::request(0, Request::GetDeviceStatus));
    bench.to_driver.push(&bench.page, &[0, 0x42, 0, 0, 0, 0, 8, 0]).unwrap();
    bench.to_driver.push(&bench.page, &[0xff; 8]).unwrap();
    for _ in 0..4 {
        assert_eq!(bench.receive(), Received::Dropped);
    }
    assert_eq!(bench.driver.counters().malformed, 4);
    assert_eq!(bench.receive(), Received::Drained { signal: true });
}

#[test]
fn events_do_not_overwrite_an_answer() {
    let mut bench = Bench::new();
    bench.send(Request::GetConfig { offset: 0, size: 2 }).unwrap();
    let sent = bench.device_takes().unwrap();
    let token = Message::decode(&sent).unwrap().token;
    bench.device_sends(Message::response(token, Response::GetConfig(config(4, 0, b"ab"))));
    bench.device_sends(Message::event(Event::Used { index: 6 }));
    bench.device_sends(Message::event(Event::Config {
        status: 64,
        config: ConfigChange {
            generation: 5,
            offset: 0,
            bytes: ChangedBytes::Sent(b"overwritten?"),
        },
    }));
    assert_eq!(bench.receive(), Received::Answer);
    assert_eq!(bench.driver.generation(), 4);
    assert_eq!(bench.receive(), Received::Used { index: 6 });
    assert_eq!(bench.receive(), Received::ConfigChanged { status: 64 });
    assert_eq!(bench.driver.generation(), 5);
    assert_eq!(bench.driver.take_answer(), Some(Ok(Response::GetConfig(config(4, 0, b"ab")))));
}

#[test]
fn spec_4_5_full_page_delays_one_event_per_queue() {
    let mut bench = Bench::new();
    for index in 0..SLOTS {
        assert_eq!(bench.driver.event_avail(&bench.page, index), Ok(true));
    }
    for index in [9, 7, 9] {
        assert_eq!(bench.driver.event_avail(&bench.page, index), Ok(false));
    }
    assert_eq!(bench.send(Request::Ping(1)), Err(SendError::Full));
    assert_eq!(bench.receive(), Received::Drained { signal: false });

    for index in 0..SLOTS {
        assert_eq!(bench.device_takes(), Some(avail(index)));
    }
    assert_eq!(bench.receive(), Received::Drained { signal: true });
    assert_eq!(bench.device_takes(), Some(avail(7)));
    assert_eq!(bench.device_takes(), Some(avail(9)));
    assert_eq!(bench.device_takes(), None);
    assert_eq!(bench.receive(), Received::Drained { signal: false });
}

fn avail(index: u32) -> Vec<u8> {
    let [number, ..] = index.to_le_bytes();
    vec![0, 0x41, 0, 0, 0, 0, 16, 0, number, 0, 0, 0, 0, 0, 0, 0]
}

#[test]
fn queue_number_beyond_the_limit_is_an_error_if_the_page_is_full() {
    let mut bench = Bench::new();
    for index in 0..SLOTS {
        bench.driver.event_avail(&bench.page, index).unwrap();
    }
    assert_eq!(bench.driver.event_avail(&bench.page, MAX_QUEUES), Err(SendError::NoSuchQueue));
}

#[test]
fn spec_4_5_device_that_filled_the_page_is_signalled() {
    let mut bench = Bench::new();
    for index in 0..SLOTS {
        bench.device_sends(Message::event(Event::Used { index }));
    }
    for index in 0..SLOTS {
        assert_eq!(bench.receive(), Received::Used { index });
    }
    assert_eq!(bench.receive(), Received::Drained { signal: true });
    assert_eq!(bench.receive(), Received::Drained { signal: false });
}

#[test]
fn spec_1_5_broken_device_gets_no_message() {
    let mut bench = Bench::new();
    bench.send(Request::GetDeviceStatus).unwrap();
    assert!(bench.device_takes().is_some());
    bench.page[0x80 / 4].store(77, Ordering::Relaxed);
    assert_eq!(bench.receive(), Received::Broken);
    assert!(bench.driver.is_broken());
    assert_eq!(bench.send(Request::GetDeviceStatus), Err(SendError::Broken));
    assert!(bench.device_takes().is_none());
}

#[test]
fn spec_4_4_impossible_producer_index_breaks_the_transport() {
    let mut bench = Bench::new();
    bench.page[0x080 / 4].store(u32::to_le(77), Ordering::Relaxed);
    assert_eq!(bench.receive(), Received::Broken);
    assert!(bench.driver.is_broken());
    assert_eq!(bench.send(Request::Ping(1)), Err(SendError::Broken));
    assert_eq!(bench.receive(), Received::Broken);
}

#[test]
fn spec_4_4_impossible_consumer_index_breaks_the_transport() {
    let mut bench = Bench::new();
    bench.page[0x040 / 4].store(u32::to_le(1), Ordering::Relaxed);
    assert_eq!(bench.driver.event_avail(&bench.page, 0), Err(SendError::Broken));
    assert!(bench.driver.is_broken());
}

#[test]
fn transport_sends_and_receives_nothing_after_give_up() {
    let mut bench = Bench::new();
    bench.send(Request::Ping(1)).unwrap();
    bench.driver.give_up();
    assert_eq!(bench.driver.take_answer(), None);
    assert_eq!(bench.send(Request::Ping(1)), Err(SendError::Broken));
    assert_eq!(bench.driver.event_avail(&bench.page, 0), Err(SendError::Broken));
    assert_eq!(bench.receive(), Received::Broken);
}

#[test]
fn spec_5_5_config_longer_than_a_message_is_an_error() {
    let mut bench = Bench::new();
    let most = bench.driver.max_config_bytes();
    assert_eq!(most, 244);
    let data = vec![1; most as usize];
    let piece = config(0, 0, &data);
    assert_eq!(
        bench.exchange(Request::SetConfig(piece), Response::SetConfig(piece)),
        Ok(Response::SetConfig(piece))
    );
    let data = vec![1; most as usize + 1];
    assert_eq!(bench.send(Request::SetConfig(config(0, 0, &data))), Err(SendError::TooLong));
}

#[test]
fn spec_5_5_answer_without_data_is_accepted() {
    let mut bench = Bench::new();
    let none = Response::GetConfig(config(3, 100, &[]));
    let request = Request::GetConfig { offset: 100, size: 8 };
    assert_eq!(bench.exchange(request, none), Ok(none));
    let none = Response::GetDeviceFeatures(FeatureBlocks::new(0, &[]));
    let request = Request::GetDeviceFeatures { first: 0, count: 2 };
    assert_eq!(bench.exchange(request, none), Ok(none));
}

#[test]
fn spec_6_2_status_without_features_ok_is_accepted() {
    let mut bench = Bench::new();
    let refused = Response::SetDeviceStatus(3);
    let answer = bench.exchange(Request::SetDeviceStatus(11), refused);
    assert_eq!(answer, Ok(refused));
}

#[test]
fn spec_6_4_reset_may_complete_later() {
    let mut bench = Bench::new();
    let pending = Response::SetDeviceStatus(15);
    assert_eq!(bench.exchange(Request::SetDeviceStatus(0), pending), Ok(pending));
    for status in [15, 64, 0] {
        let is = Response::GetDeviceStatus(status);
        assert_eq!(bench.exchange(Request::GetDeviceStatus, is), Ok(is));
    }
}

/// Sends PING `number` with `token` from the device.
fn ping(bench: &mut Bench, token: u16, number: u32) {
    bench.device_sends(Message::request(token, Request::Ping(number)));
}

fn pong(token: u16, number: u32) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    Message::response(token, Response::Ping(number)).encode(&mut bytes).unwrap();
    bytes
}

#[test]
fn spec_5_9_ping_is_answered_once() {
    let mut bench = Bench::new();
    ping(&mut bench, 0xbeef, 77);
    assert_eq!(bench.receive(), Received::Pinged);
    assert_eq!(bench.receive(), Received::Drained { signal: true });
    assert_eq!(bench.device_takes(), Some(pong(0xbeef, 77)));
    assert_eq!(bench.receive(), Received::Drained { signal: false });
    assert_eq!(bench.device_takes(), None);
    assert_eq!(bench.driver.counters(), Counters::default());
}

#[test]
fn spec_5_9_ping_is_answered_while_a_request_is_outstanding() {
    let mut bench = Bench::new();
    bench.send(Request::GetDeviceStatus).unwrap();
    let sent = bench.device_takes().unwrap();
    // PING has the same token: each side numbers its own requests.
    let token = Message::decode(&sent).unwrap().token;
    ping(&mut bench, token, 5);
    bench.device_sends(Message::response(token, Response::GetDeviceStatus(3)));
    assert_eq!(bench.receive(), Received::Pinged);
    assert_eq!(bench.receive(), Received::Answer);
    assert_eq!(bench.receive(), Received::Drained { signal: true });
    assert_eq!(bench.device_takes(), Some(pong(token, 5)));
    assert_eq!(bench.driver.take_answer(), Some(Ok(Response::GetDeviceStatus(3))));
}

#[test]
fn spec_5_9_further_pings_are_dropped_until_the_first_is_answered() {
    let mut bench = Bench::new();
    for index in 0..SLOTS {
        bench.driver.event_avail(&bench.page, index).unwrap();
    }
    // The queue has no free slot for an answer: one PING waits, and the others are dropped.
    for number in 0..20 {
        ping(&mut bench, 1, number);
        let expected = if number == 0 { Received::Pinged } else { Received::Dropped };
        assert_eq!(bench.receive(), expected);
        assert_eq!(bench.receive(), Received::Drained { signal: false });
    }
    assert_eq!(bench.driver.counters().unexpected, 19);
    (0..SLOTS).for_each(|_| assert!(bench.device_takes().is_some()));
    assert_eq!(bench.receive(), Received::Drained { signal: true });
    assert_eq!(bench.device_takes(), Some(pong(1, 0)));
    ping(&mut bench, 2, 99);
    assert_eq!(bench.receive(), Received::Pinged);
}

#[test]
fn spec_6_6_config_outside_the_known_size_is_an_error() {
    let mut bench = Bench::new();
    // Until GET_DEVICE_INFO returns the size, the driver asks for any range.
    let none = Response::GetConfig(config(0, 100, &[]));
    assert_eq!(bench.exchange(Request::GetConfig { offset: 100, size: 8 }, none), Ok(none));
    let (info, answer) = fitting().into_iter().next().unwrap();
    bench.exchange(info, answer).unwrap();
    for (offset, size) in [(64, 1), (57, 8), (0, 65), (u32::MAX, 1), (1, u32::MAX)] {
        let sent = bench.send(Request::GetConfig { offset, size });
        assert_eq!(sent, Err(SendError::OutsideConfig), "{offset} {size}");
    }
    for (offset, length) in [(64, 1), (60, 8), (u32::MAX, 2), (65, 0)] {
        let sent = bench.send(Request::SetConfig(config(0, offset, &vec![1; length])));
        assert_eq!(sent, Err(SendError::OutsideConfig), "{offset} {length}");
    }
    assert_eq!(bench.device_takes(), None);
    // The whole space; its last byte; an empty range at its end.
    for (offset, length) in [(0, 64), (63, 1), (64, 0)] {
        let data = vec![7; length];
        let read = Response::GetConfig(config(3, offset, &data));
        let size = length as u32;
        assert_eq!(bench.exchange(Request::GetConfig { offset, size }, read), Ok(read));
    }
}

/// Whatever the page holds, `receive` drains it or breaks the transport, and does not panic.
#[test]
fn arbitrary_page_is_drained_or_breaks_the_transport() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..2000 {
        let mut bench = Bench::new();
        bench.send(Request::GetVqueue { index: 1 }).unwrap();
        for word in &bench.page[0x880 / 4..] {
            word.store(random() as u32, Ordering::Relaxed);
        }
        for slot in 0..4 {
            let (kind, id) = (random() as u32 & 3, random() as u32 & 0x4f);
            bench.page[(0x880 + slot * 480) / 4].store(kind | id << 8, Ordering::Relaxed);
            let size = 8 + random() as u32 % 100;
            bench.page[(0x880 + slot * 480) / 4 + 1].store(1 | size << 16, Ordering::Relaxed);
        }
        bench.page[0x080 / 4].store(random() as u32 % 6, Ordering::Relaxed);
        let received = (0..6).map(|_| bench.receive()).last().unwrap();
        assert!(matches!(received, Received::Drained { .. } | Received::Broken));
        let _ = bench.driver.take_answer();
    }
}
