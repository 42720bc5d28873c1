//! What a hostile guest, and whoever is around it, can do.

use arbitrary::Arbitrary;
use protocol::grant::{GrantAddress, GrantRef};
use protocol::pool::PoolPage;

use super::Kind;

/// One of them.
#[derive(Arbitrary, Debug)]
pub(super) enum Step<'a> {
    /// Bytes as a message, whatever they are.
    Message(&'a [u8]),
    /// A message that is none of a driver's mistakes, with any numbers in it.
    Ask {
        kind: u8,
        first: u32,
        second: u32,
        place: Place,
        bytes: &'a [u8],
    },
    /// A word of the message page.
    Word {
        word: u16,
        value: u32,
    },
    /// Bytes in any page that was granted.
    Scribble {
        page: u8,
        offset: u16,
        bytes: &'a [u8],
    },
    /// A descriptor.
    Descriptor {
        ring: u8,
        index: u8,
        place: Place,
        length: Length,
        flags: u8,
        next: u8,
    },
    /// A head is made available, and with it so many.
    Offer {
        ring: u8,
        head: u16,
        by: u8,
    },
    /// A request as the device's own drivers make them, but for what `spoil` does to its header.
    Request {
        ring: u8,
        template: u8,
        spoil: &'a [u8],
        place: Place,
        length: Length,
        parts: u8,
    },
    /// A queue's doorbell, so many times.
    Doorbell {
        ring: u8,
        times: u8,
    },
    /// A queue's news in band, of whichever queue.
    Available {
        index: u32,
    },
    /// The message page's event channel.
    Signal,
    /// Grants end, whether they are mapped or not.
    EndGrants {
        which: u8,
        count: u8,
    },
    /// A key of the frontend's.
    Key {
        key: Key,
        value: Value<'a>,
    },
    /// The frontend starts anew, as after a reload of its module.
    Restart,
    /// The guest waits until the device has answered a message, if it does.
    Settle,
    /// The answers so far are taken out of the page.
    TakeAnswers,
    /// A program comes on the host's side, says something or hears it, or goes.
    Come,
    Say {
        which: u8,
        bytes: &'a [u8],
    },
    Go {
        which: u8,
    },
    /// A second thread writes over all that is granted, until the end.
    Scribbler {
        seed: u32,
    },
    /// The toolstack writes into the backend's directory.
    Toolstack {
        online: bool,
        state: u8,
    },
}

/// Where something lies, as a device is told.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Place {
    /// In pages that are granted, for writing or only for reading.
    Writable {
        page: u8,
        offset: u16,
    },
    ReadOnly {
        page: u8,
        offset: u16,
    },
    /// In the pool, or beyond what was shared.
    SharedPool {
        page: u16,
        offset: u16,
    },
    /// In a ring's own pages.
    Ring {
        ring: u8,
        area: u8,
        offset: u16,
    },
    /// Nowhere.
    Ungranted {
        reference: u32,
        offset: u16,
    },
    Raw(u64),
}

/// First references of what is granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) writable: GrantRef,
    pub(super) read_only: GrantRef,
    pub(super) pages: u32,
}

impl Place {
    /// The address, where `ring` finds a ring's area.
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

/// A buffer's length: mostly a small one.
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

/// What stands in it.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    State(u8),
    Number(u64),
    Text(&'a str),
    /// As much as XenStore takes.
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

/// Headers of requests that make sense, and whether the device only reads what follows.
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
