//! One interrupt of the message channel: how long it is served, and whether it came for nothing.
//!
//! The kernel slows a backend down that signals for nothing: it puts off the end of such an
//! interrupt, for longer each time (XSA-391). So a message counts that the driver waits for or
//! learns from. Anybody can fill the page with others.

/// Messages that are dealt with before others get the processor: several times what the page holds,
/// so that only a device that writes without pause exceeds it.
pub const BUDGET: u32 = 16;

/// What the driver made of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// There was none.
    None,
    /// It was dropped, or told nothing new.
    Useless,
    /// It answered a request, or told of something that happened.
    Useful,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Take the next message.
    Receive,
    /// Let others have the processor, then take more; the channel stays masked.
    ComeBack,
    /// Unmask the channel.
    Done,
    /// Unmask the channel, and tell the kernel that the interrupt came for nothing.
    DoneForNothing,
}

/// What came with one interrupt so far.
///
/// All zeros is how it begins.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Interrupt {
    handled: u32,
    useful: u32,
}

impl Interrupt {
    /// Counts a message. A page that never empties and brings nothing of use is left: the channel
    /// will be signalled again for what is still there, at the pace that the kernel then allows.
    pub fn count(&mut self, message: Message) -> Next {
        self.handled = self.handled.saturating_add(u32::from(message != Message::None));
        self.useful = self.useful.saturating_add(u32::from(message == Message::Useful));
        match (message, self.useful) {
            (Message::None, 0) => Next::DoneForNothing,
            (Message::None, _) => Next::Done,
            _ if self.handled < BUDGET => Next::Receive,
            (_, 0) => Next::DoneForNothing,
            _ => Next::ComeBack,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::iter::repeat_n;
    use std::vec::Vec;

    use super::*;

    /// What an interrupt with these messages ends with.
    fn served(messages: impl IntoIterator<Item = Message>) -> Next {
        let mut interrupt = Interrupt::default();
        let mut next = messages.into_iter().map(|message| interrupt.count(message));
        next.find(|next| *next != Next::Receive).unwrap()
    }

    fn messages(useless: usize, useful: usize) -> impl Iterator<Item = Message> {
        repeat_n(Message::Useless, useless).chain(repeat_n(Message::Useful, useful))
    }

    #[test]
    fn an_interrupt_that_brings_an_answer_or_an_event_is_not_held_against_the_backend() {
        for useless in 0..4 {
            let came = messages(useless, 1).chain([Message::None]);
            assert_eq!(served(came), Next::Done);
        }
    }

    #[test]
    fn an_interrupt_for_nothing_is() {
        assert_eq!(served([Message::None]), Next::DoneForNothing);
    }

    #[test]
    fn nonsense_is_nothing_however_much_there_is() {
        for useless in 1..=BUDGET as usize {
            let came = messages(useless, 0).chain([Message::None]);
            assert_eq!(served(came), Next::DoneForNothing, "{useless} messages");
        }
        assert_eq!(served(messages(1000, 0)), Next::DoneForNothing, "without a pause");
    }

    #[test]
    fn a_device_that_writes_without_pause_leaves_the_processor_to_others() {
        let mut interrupt = Interrupt::default();
        let taken = messages(0, 1000).map(|message| interrupt.count(message));
        let taken: Vec<_> = taken.take_while(|next| *next == Next::Receive).collect();
        assert_eq!(taken.len() as u32, BUDGET - 1);
        assert_eq!(served(messages(0, 1000)), Next::ComeBack);
    }
}
