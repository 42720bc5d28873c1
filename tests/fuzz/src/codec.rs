//! The codec: a decoded message is the same after encoding and decoding it again.

use protocol::message::Message;

/// The largest size that a header can give, in bytes.
const LONGEST: usize = u16::MAX as usize;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(message) = Message::decode(bytes) else { return };
    let mut encoded = vec![0; LONGEST];
    let size = message.encode(&mut encoded).expect("a decoded message can be encoded");
    assert_eq!(Message::decode(&encoded[..size]), Ok(message));
    // A buffer that is too short is an error; a write beyond it would panic.
    for capacity in 0..size {
        assert!(message.encode(&mut encoded[..capacity]).is_err(), "{size} bytes in {capacity}");
    }
}
