//! The driver's transport, against a hostile device.

use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::{Arbitrary, Result, Unstructured};
use guest_shim::transport::{Received, SendError, Transport};
use protocol::binding::negotiate;
use protocol::grant::GrantRef;
use protocol::message::{ConfigData, FeatureBlocks, Request, Response, VqueueFlags, VqueueUpdate};
use protocol::page::{PageWords, SLOT_SIZE, SLOTS};
use protocol::pool::PoolPage;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Ask {
        kind: u8,
        first: u32,
        second: u32,
        bytes: &'a [u8],
    },
    Avail {
        index: u32,
    },
    /// The device sends these bytes; if `knows`, with the token of the outstanding request.
    Send {
        knows: bool,
        bytes: &'a [u8],
    },
    /// The device writes a word anywhere.
    Write {
        word: u16,
        value: u32,
    },
    Receive,
    TakeAnswer,
}

/// The driver, and the state of the device beside it.
struct Pair {
    page: Box<PageWords>,
    driver: Transport,
    /// The last request, until the driver takes its answer.
    asked: Option<Asked>,
    /// Number of requests sent, which is the last request's token.
    tokens: u16,
    /// Number of messages that the device has sent.
    sent: u32,
}

/// The fields of a request that its answer must match.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Config { offset: u32, size: u32 },
    Queue { index: u32 },
    Other,
}

pub(crate) fn run(bytes: &[u8]) {
    // An input that ends within a step ends the run.
    let _ = play(&mut Unstructured::new(bytes));
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let max_size = input.int_in_range(52..=u32::from(u16::MAX))?;
    let negotiated =
        negotiate(1, max_size, input.arbitrary()?).expect("sizes from 52 on are valid");
    let mut pair = Pair {
        page: Box::new(std::array::from_fn(|_| AtomicU32::new(0))),
        driver: Transport::new(negotiated),
        asked: None,
        tokens: 0,
        sent: 0,
    };
    while !input.is_empty() {
        match input.arbitrary()? {
            Step::Ask { kind, first, second, bytes } => pair.ask(kind, first, second, bytes),
            Step::Avail { index } => drop(pair.driver.event_avail(&pair.page, index)),
            Step::Send { knows, bytes } => pair.device_sends(knows, bytes),
            Step::Write { word, value } => {
                let word = usize::from(word) % pair.page.len();
                pair.page[word].store(value, Ordering::Relaxed);
            }
            Step::Receive => pair.receive(),
            Step::TakeAnswer => pair.take_answer(),
        }
    }
    Ok(())
}

impl Pair {
    fn ask(&mut self, kind: u8, first: u32, second: u32, bytes: &[u8]) {
        let update = VqueueUpdate {
            index: first,
            flags: VqueueFlags(second),
            size: second,
            reserved: first,
            descriptor: first.into(),
            driver: second.into(),
            device: first.into(),
        };
        let whole = &bytes[..bytes.len() / 4 * 4];
        let reference = GrantRef(second);
        let request = match kind % 15 {
            0 => Request::GetDeviceInfo,
            1 => Request::GetDeviceFeatures { first, count: second },
            2 => Request::SetDriverFeatures(FeatureBlocks::new(first, whole)),
            3 => Request::GetConfig { offset: first, size: second },
            4 => Request::SetConfig(ConfigData { generation: second, offset: first, data: bytes }),
            5 => Request::GetDeviceStatus,
            6 => Request::SetDeviceStatus(first),
            7 => Request::GetVqueue { index: first },
            8 => Request::SetVqueue(update),
            9 => Request::ResetVqueue { index: first },
            10 => Request::GetShm { shmid: first },
            11 => Request::Ping(first),
            12 => Request::BindQueue { index: first, port: second },
            13 => Request::SharePages { first: PoolPage(first), count: second, reference },
            _ => Request::UnsharePages { first: PoolPage(first), count: second },
        };
        match self.driver.send(&self.page, request) {
            Ok(()) => {
                self.tokens = self.tokens.wrapping_add(1);
                self.asked = Some(match request {
                    Request::GetConfig { offset, size } => Asked::Config { offset, size },
                    Request::GetVqueue { index } => Asked::Queue { index },
                    _ => Asked::Other,
                });
            }
            Err(SendError::Broken) => assert!(self.driver.is_broken()),
            Err(_) => {}
        }
    }

    /// Writes arbitrary bytes into the next slot, and advances the producer's index.
    fn device_sends(&mut self, knows_token: bool, bytes: &[u8]) {
        let mut slot = [0; SLOT_SIZE];
        let size = bytes.len().min(SLOT_SIZE);
        slot[..size].copy_from_slice(&bytes[..size]);
        if knows_token {
            slot[4..6].copy_from_slice(&self.tokens.to_le_bytes());
            slot[6..8].copy_from_slice(&(size as u16).to_le_bytes());
        }
        let base = 0x880 / 4 + (self.sent % SLOTS) as usize * SLOT_SIZE / 4;
        for (word, chunk) in self.page[base..].iter().zip(slot.chunks_exact(4)) {
            word.store(u32::from_ne_bytes(chunk.try_into().unwrap()), Ordering::Relaxed);
        }
        self.sent = self.sent.wrapping_add(1);
        self.page[0x80 / 4].store(self.sent.to_le(), Ordering::Release);
    }

    /// Drains the page. The device writes nothing meanwhile, so that this takes a few calls.
    fn receive(&mut self) {
        for _ in 0..=SLOTS {
            match self.driver.receive(&self.page) {
                Received::Drained { .. } => return,
                Received::Broken => {
                    assert!(self.driver.is_broken());
                    assert_eq!(
                        self.driver.receive(&self.page),
                        Received::Broken,
                        "it stays broken"
                    );
                    return;
                }
                Received::Answer => assert!(self.asked.is_some(), "no request is outstanding"),
                Received::Dropped
                | Received::ConfigChanged { .. }
                | Received::Pinged
                | Received::Used { .. } => {}
            }
        }
        panic!("the page returned more messages than it has slots");
    }

    fn take_answer(&mut self) {
        let max = self.driver.max_config_bytes();
        let Some(answer) = self.driver.take_answer() else { return };
        let asked = self.asked.take().expect("no request is outstanding");
        match (asked, answer) {
            (Asked::Config { offset, size }, Ok(Response::GetConfig(config))) => {
                assert_eq!(config.offset, offset);
                assert!(config.data.len() as u32 <= size.min(max));
            }
            (Asked::Queue { index }, Ok(Response::GetVqueue(queue))) => {
                assert_eq!(queue.index, index);
            }
            (Asked::Config { .. } | Asked::Queue { .. }, Ok(other)) => panic!("{other:?}"),
            (Asked::Other, Ok(Response::GetConfig(_) | Response::GetVqueue(_))) => {
                panic!("the answer is of another kind");
            }
            (_, Ok(_) | Err(_)) => {}
        }
    }
}
