//! Messages: whatever can be decoded is, once encoded, the same message again.

use protocol::message::Message;

/// As many bytes as a header's size can give.
const LONGEST: usize = u16::MAX as usize;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(message) = Message::decode(bytes) else { return };
    let mut encoded = vec![0; LONGEST];
    let size = message.encode(&mut encoded).expect("what was decoded can be encoded");
    assert_eq!(Message::decode(&encoded[..size]), Ok(message));
    // No room is an error, and no byte is written beyond it.
    for room in 0..size {
        assert!(message.encode(&mut encoded[..room]).is_err(), "{size} bytes in {room}");
    }
}
