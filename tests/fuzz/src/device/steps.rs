//! The steps of a run: actions of the guest, the toolstack and the host's programs.

use arbitrary::Arbitrary;
use protocol::grant::{GrantAddress, GrantRef};
use protocol::pool::PoolPage;

use super::Kind;

/// One step.
#[derive(Arbitrary, Debug)]
pub(super) enum Step<'a> {
    /// The guest sends arbitrary bytes as a message.
    Message(&'a [u8]),
    /// The guest sends a well-formed request with arbitrary numbers.
    Ask { kind: u8, first: u32, second: u32, place: BufferPosition, bytes: &'a [u8] },
    /// The guest overwrites a word of the message page.
    Word { word: u16, value: u32 },
    /// The guest overwrites bytes in a buffer or a ring.
    Scribble { page: u8, offset: u16, bytes: &'a [u8] },
    /// The guest writes a descriptor.
    Descriptor { ring: u8, index: u8, place: BufferPosition, length: Length, flags: u8, next: u8 },
    /// The guest makes a head available, and advances the index by `by`.
    Offer { ring: u8, head: u16, by: u8 },
    /// The guest makes a request as real drivers do, with a header that `spoil` changes.
    Request {
        ring: u8,
        template: u8,
        spoil: &'a [u8],
        place: BufferPosition,
        length: Length,
        parts: u8,
    },
    /// The guest notifies a queue's doorbell `times` modulo 8 times.
    Doorbell { ring: u8, times: u8 },
    /// The guest notifies a queue in band; the queue may not exist.
    Available { index: u32 },
    /// The guest signals the message page's event channel.
    Signal,
    /// The guest ends grants, whether they are mapped or not.
    EndGrants { which: u8, count: u8 },
    /// The guest writes a key in the frontend's directory.
    Key { key: Key, value: Value<'a> },
    /// The frontend closes and starts again, as after a reload of its module.
    Restart,
    /// The guest waits for the answer to a PING, up to a limit.
    Settle,
    /// The guest marks all messages of the device as consumed.
    TakeAnswers,
    /// A program on the host connects.
    Come,
    /// A program on the host writes, or reads if there are no bytes.
    Say { which: u8, bytes: &'a [u8] },
    /// A program on the host disconnects.
    Go { which: u8 },
    /// A second thread starts to overwrite the guest's pages, until the end of the run.
    Scribbler { seed: u32 },
    /// The toolstack writes into the backend's directory.
    Toolstack { online: bool, state: u8 },
}

/// The memory that the guest names in a descriptor or a message.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum BufferPosition {
    /// A page that is granted writable.
    Writable { page: u8, offset: u16 },
    /// A page that is granted read-only.
    ReadOnly { page: u8, offset: u16 },
    /// A page of the pool, which the guest may not have shared.
    SharedPool { page: u16, offset: u16 },
    /// A page of a ring.
    Ring { ring: u8, area: u8, offset: u16 },
    /// Any grant reference, which is rarely granted.
    Ungranted { reference: u32, offset: u16 },
    /// Any address.
    Raw(u64),
}

/// The first references of the granted buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) writable: GrantRef,
    pub(super) read_only: GrantRef,
    pub(super) pages: u32,
}

impl BufferPosition {
    /// The DMA address; `ring` returns the address of a ring's area.
    pub(super) fn address(self, granted: &Granted, ring: impl Fn(u8, u8) -> u64) -> u64 {
        let grant = |first: GrantRef, page: u8, offset: u16| {
            let reference = GrantRef(first.0 + u32::from(page) % granted.pages);
            GrantAddress::new(reference, offset.into()).encode()
        };
        match self {
            Self::Writable { page, offset } => grant(granted.writable, page, offset),
            Self::ReadOnly { page, offset } => grant(granted.read_only, page, offset),
            Self::SharedPool { page, offset } => {
                PoolPage((page % 32).into()).address(offset.into())
            }
            Self::Ring { ring: number, area, offset } => {
                ring(number, area) + u64::from(offset % 4096)
            }
            Self::Ungranted { reference, offset } => {
                GrantAddress::new(GrantRef(reference), offset.into()).encode()
            }
            Self::Raw(address) => address,
        }
    }
}

/// The length of a buffer, which is mostly small.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Length {
    Small(u8),
    Sectors(u8),
    Pages(u16),
    Any(u32),
}

impl Length {
    pub(super) fn bytes(self) -> u32 {
        match self {
            Self::Small(bytes) => bytes.into(),
            Self::Sectors(sectors) => u32::from(sectors) * 512,
            Self::Pages(pages) => u32::from(pages) * 4096,
            Self::Any(bytes) => bytes,
        }
    }
}

/// A key of the frontend's directory.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Key {
    State,
    MessagePage,
    EventChannel,
    Other,
}

impl Key {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::MessagePage => "message-page-ref",
            Self::EventChannel => "event-channel",
            Self::Other => "other",
        }
    }
}

/// The value of a key.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    State(u8),
    Number(u64),
    Text(&'a str),
    /// A long text, up to XenStore's limit for guests.
    Long {
        letter: char,
        count: u16,
    },
}

impl Value<'_> {
    pub(super) fn text(self) -> String {
        match self {
            Self::State(state) => (state % 8).to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.to_owned(),
            Self::Long { letter, count } => {
                let count = usize::from(count) % (2048 / letter.len_utf8());
                letter.to_string().repeat(count)
            }
        }
    }
}

/// Valid request headers for a kind of device.
pub(super) fn templates(kind: Kind) -> &'static [&'static [u8]] {
    match kind {
        Kind::Block | Kind::Image => &[
            b"\x00\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0",
            b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
            b"\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x0b\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0",
            b"\x0d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x08\0\0\0\x01\0\0\0",
        ],
        Kind::Network => &[
            b"\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\0\x16\x3e\0\0\x01\x08\0",
            b"\x01\x01\x36\0\xb4\x05\x22\0\x10\0\0\0\xff\xff\xff\xff\xff\xff\0\x16\x3e\0\0\x01\x08\0\x45\0",
            b"\x04\x00\x02\0",
        ],
        Kind::Console => &[
            b"login: ",
            b"\0\0\0\0\0\0\x01\0",
            b"\x01\0\0\0\x03\0\x01\0",
            b"\x02\0\0\0\x06\0\x01\0",
            b"\x01\0\0\0\x06\0\0\0",
        ],
        Kind::Socket => &[
            b"\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\xe8\x03\0\0\x34\0\0\0\0\0\0\0\x01\0\x01\0\0\0\0\0\0\0\x10\0\0\0\0\0",
            b"\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\xe8\x03\0\0\x34\0\0\0\x04\0\0\0\x01\0\x05\0\0\0\0\0\0\0\x10\0\0\0\0\0data",
            b"\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\xe8\x03\0\0\x34\0\0\0\0\0\0\0\x01\0\x04\0\x03\0\0\0\0\0\x10\0\0\0\0\0",
            b"\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\xe8\x03\0\0\x34\0\0\0\0\0\0\0\x01\0\x02\0\0\0\0\0\0\0\x10\0\0\0\0\0",
            b"\x03\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\xe8\x03\0\0\x34\0\0\0\0\0\0\0\x01\0\x06\0\0\0\0\0\0\0\0\0\x04\0\0\0",
        ],
        Kind::Entropy => &[b""],
    }
}
