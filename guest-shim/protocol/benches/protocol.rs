//! Benchmarks of the work that both sides do for every message and every address.

use std::hint::black_box;
use std::sync::atomic::AtomicU32;

use criterion::Criterion;
use protocol::grant::{GrantAddress, GrantRange, GrantRef};
use protocol::message::{Message, Request};
use protocol::page::{Consumer, PageWords, Producer, QueueDirection, SLOT_SIZE};

fn codec(criterion: &mut Criterion) {
    let message = Message::request(7, Request::GetConfig { offset: 0, size: 60 });
    let mut bytes = [0; SLOT_SIZE];
    let Ok(size) = message.encode(&mut bytes) else { return };
    criterion.bench_function("encode a message", |bencher| {
        let mut bytes = [0; SLOT_SIZE];
        bencher.iter(|| black_box(&message).encode(&mut bytes));
    });
    criterion.bench_function("decode a message", |bencher| {
        bencher.iter(|| Message::decode(black_box(&bytes).get(..size).unwrap_or(&[])).is_ok());
    });
}

fn page(criterion: &mut Criterion) {
    let page: PageWords = std::array::from_fn(|_| AtomicU32::new(0));
    let direction = QueueDirection::DriverToDevice;
    let (mut producer, mut consumer) = (Producer::new(direction), Consumer::new(direction));
    let mut message = [0; SLOT_SIZE];
    let Ok(size) = Message::request(1, Request::Ping(1)).encode(&mut message) else { return };
    criterion.bench_function("a message through the page", |bencher| {
        let mut buffer = [0; SLOT_SIZE];
        bencher.iter(|| {
            let pushed = producer.push(&page, message.get(..size).unwrap_or(&[]));
            (pushed, consumer.pop(&page, SLOT_SIZE, &mut buffer))
        });
    });
}

fn addresses(criterion: &mut Criterion) {
    let address = GrantAddress::new(GrantRef(1234), 4000).encode();
    criterion.bench_function("an address to its grants", |bencher| {
        bencher.iter(|| GrantRange::decode(black_box(address), black_box(65536)));
    });
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    codec(&mut criterion);
    page(&mut criterion);
    addresses(&mut criterion);
    criterion.final_summary();
}
