//! One interrupt of the message channel: how many messages the driver handles, and whether the
//! interrupt was spurious.
//!
//! The kernel slows a backend down that sends spurious events: it delays the end of such an
//! interrupt, longer each time (XSA-391). So only messages count that answer a request or carry
//! something new, because a backend can fill the page with other ones at no cost.

/// The maximum number of messages that the driver handles before it yields the processor: several
/// times the page's slots, so that only a device that writes without a pause exceeds it.
pub const BUDGET: u32 = 16;

/// The result of one attempt to receive a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The page held no message.
    None,
    /// The driver dropped the message, or it carried nothing new.
    Useless,
    /// The message answered a request, or carried something new.
    Useful,
}

/// The next action of the interrupt handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Receive the next message.
    Receive,
    /// Yield the processor, then receive more; the channel stays masked.
    Later,
    /// Unmask the channel.
    Done,
    /// Unmask the channel, and report the event as spurious to the kernel.
    Spurious,
}

/// Counters of the messages that one interrupt has brought so far.
///
/// The initial value is all zeros, so that C can zero it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Interrupt {
    handled: u32,
    useful: u32,
}

impl Interrupt {
    /// Counts a message and returns the next action. After [`BUDGET`] useless messages the handler
    /// leaves the page although it is not empty, and continues at the backend's next event, which
    /// the kernel delays.
    pub fn count(&mut self, message: Message) -> Next {
        self.handled = self.handled.saturating_add(u32::from(message != Message::None));
        self.useful = self.useful.saturating_add(u32::from(message == Message::Useful));
        match (message, self.useful) {
            (Message::None, 0) => Next::Spurious,
            (Message::None, _) => Next::Done,
            _ if self.handled < BUDGET => Next::Receive,
            (_, 0) => Next::Spurious,
            _ => Next::Later,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::iter::repeat_n;
    use std::vec::Vec;

    use super::*;

    /// The action that ends an interrupt with these messages.
    fn served(messages: impl IntoIterator<Item = Message>) -> Next {
        let mut interrupt = Interrupt::default();
        let mut next = messages.into_iter().map(|message| interrupt.count(message));
        next.find(|next| *next != Next::Receive).unwrap()
    }

    fn messages(useless: usize, useful: usize) -> impl Iterator<Item = Message> {
        repeat_n(Message::Useless, useless).chain(repeat_n(Message::Useful, useful))
    }

    #[test]
    fn interrupt_with_a_useful_message_is_not_spurious() {
        for useless in 0..4 {
            let came = messages(useless, 1).chain([Message::None]);
            assert_eq!(served(came), Next::Done);
        }
    }

    #[test]
    fn interrupt_without_messages_is_spurious() {
        assert_eq!(served([Message::None]), Next::Spurious);
    }

    #[test]
    fn interrupt_with_only_useless_messages_is_spurious() {
        for useless in 1..=BUDGET as usize {
            let came = messages(useless, 0).chain([Message::None]);
            assert_eq!(served(came), Next::Spurious, "{useless} messages");
        }
        assert_eq!(served(messages(1000, 0)), Next::Spurious, "without a pause");
    }

    #[test]
    fn handler_yields_the_processor_to_a_device_that_writes_without_pause() {
        let mut interrupt = Interrupt::default();
        let taken = messages(0, 1000).map(|message| interrupt.count(message));
        let taken: Vec<_> = taken.take_while(|next| *next == Next::Receive).collect();
        assert_eq!(taken.len() as u32, BUDGET - 1);
        assert_eq!(served(messages(0, 1000)), Next::Later);
    }
}
