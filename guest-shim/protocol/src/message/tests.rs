//! Round trips of every message, and every kind of malformed message.

extern crate std;

use std::vec::Vec;

use super::*;
use crate::grant::GrantRef;
use crate::pool::PoolPage;

const UPDATE: VqueueUpdate = VqueueUpdate {
    index: 3,
    flags: VqueueFlags(VqueueFlags::ENABLE),
    size: 256,
    reserved: 0,
    descriptor: 0x8000_0000_0000_1000,
    driver: 0x8000_0000_0000_2000,
    device: 0x8000_0000_0000_3000,
};
const CONFIG: ConfigData<'_> = ConfigData { generation: 5, offset: 8, data: &[1, 2, 3] };
const CHANGE: ConfigChange<'_> =
    ConfigChange { generation: 5, offset: 8, bytes: ChangedBytes::Sent(&[1, 2, 3]) };
const INFO: DeviceInfo = DeviceInfo {
    device_id: 2,
    vendor_id: 0x5853,
    uuid: [7; 16],
    feature_blocks: 2,
    config_size: 60,
    max_virtqueues: 4,
    admin_queue_start: 0,
    admin_queue_count: 0,
};
const QUEUE: VqueueState = VqueueState {
    index: 1,
    max_size: 256,
    size: 128,
    enabled: true,
    descriptor: 1,
    driver: 2,
    device: 3,
};

fn blocks() -> FeatureBlocks<'static> {
    FeatureBlocks::new(0, &[0, 2, 0, 0, 3, 0, 0, 0])
}

/// One message of each kind, with its size on the wire.
fn every_message() -> Vec<(Message<'static>, usize)> {
    let mut all = Vec::new();
    for (request, payload) in [
        (Request::GetDeviceInfo, 0),
        (Request::GetDeviceFeatures { first: 0, count: 2 }, 8),
        (Request::SetDriverFeatures(blocks()), 16),
        (Request::GetConfig { offset: 0, size: 8 }, 8),
        (Request::SetConfig(CONFIG), 15),
        (Request::GetDeviceStatus, 0),
        (Request::SetDeviceStatus(11), 4),
        (Request::GetVqueue { index: 1 }, 4),
        (Request::SetVqueue(UPDATE), 40),
        (Request::ResetVqueue { index: 1 }, 4),
        (Request::GetShm { shmid: 9 }, 4),
        (Request::Ping(77), 4),
        (Request::BindQueue { index: 2, port: 31 }, 8),
        (Request::SharePages { first: PoolPage(64), count: 64, reference: GrantRef(9) }, 12),
        (Request::UnsharePages { first: PoolPage(64), count: 64 }, 8),
    ] {
        all.push((Message::request(0x1234, request), HEADER_SIZE + payload));
    }
    for (response, payload) in [
        (Response::GetDeviceInfo(INFO), 44),
        (Response::GetDeviceFeatures(blocks()), 16),
        (Response::SetDriverFeatures, 0),
        (Response::GetConfig(CONFIG), 15),
        (Response::SetConfig(CONFIG), 15),
        (Response::GetDeviceStatus(11), 4),
        (Response::SetDeviceStatus(3), 4),
        (Response::GetVqueue(QUEUE), 40),
        (Response::SetVqueue, 0),
        (Response::ResetVqueue, 0),
        (Response::GetShm { shmid: 9, length: 0, address: 0 }, 24),
        (Response::Ping(77), 4),
        (Response::BindQueue { index: 2, outcome: BindOutcome::Bound }, 8),
        (Response::BindQueue { index: 2, outcome: BindOutcome::Refused }, 8),
        (Response::SharePages { first: PoolPage(64), outcome: ShareOutcome::Shared }, 8),
        (Response::SharePages { first: PoolPage(64), outcome: ShareOutcome::Refused }, 8),
        (Response::UnsharePages { first: PoolPage(64), outcome: UnshareOutcome::Unshared }, 8),
        (Response::UnsharePages { first: PoolPage(64), outcome: UnshareOutcome::Refused }, 8),
    ] {
        all.push((Message::response(0x1234, response), HEADER_SIZE + payload));
    }
    for (event, payload) in [
        (Event::Config { status: 79, config: CHANGE }, 19),
        (Event::Config { status: 79, config: ConfigChange::anywhere(5) }, 16),
        (Event::Avail { index: 1, next_offset_wrap: 0 }, 8),
        (Event::Used { index: 1 }, 4),
    ] {
        all.push((Message::event(event), HEADER_SIZE + payload));
    }
    all
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut buffer = [0xaa; 480];
    let size = message.encode(&mut buffer).unwrap();
    buffer[..size].to_vec()
}

#[test]
fn spec_5_1_every_message_round_trips_at_its_size() {
    for (message, size) in every_message() {
        let bytes = encoded(&message);
        assert_eq!(bytes.len(), size, "{message:?}");
        assert_eq!(Message::decode(&bytes), Ok(message));
    }
}

#[test]
fn spec_5_3_every_truncation_is_an_error() {
    for (message, size) in every_message() {
        let bytes = encoded(&message);
        for cut in 0..size {
            assert!(Message::decode(&bytes[..cut]).is_err(), "{message:?} cut to {cut}");
            // A header with the truncated size does not make the message valid.
            let mut honest = bytes[..cut].to_vec();
            // An event may omit all bytes of a change.
            let omits = message.body == Body::Event(Event::Config { status: 79, config: CHANGE });
            if let Some(field) = honest.get_mut(6..8).filter(|_| !omits || cut != 24) {
                field.copy_from_slice(&(cut as u16).to_le_bytes());
                assert!(Message::decode(&honest).is_err(), "{message:?} claims {cut}");
            }
        }
    }
}

#[test]
fn spec_5_2_unknown_type_bits_are_ignored_and_dev_num_is_not() {
    let mut bytes = encoded(&Message::request(1, Request::GetDeviceInfo));
    bytes[0] |= 0xfc;
    assert_eq!(Message::decode(&bytes), Ok(Message::request(1, Request::GetDeviceInfo)));
    bytes[2] = 1;
    assert_eq!(Message::decode(&bytes), Err(MessageError::Field("dev_num")));
}

#[test]
fn spec_5_3_unknown_numbers_are_errors() {
    let known: Vec<_> = every_message().iter().map(|(m, _)| encoded(m)[..2].to_vec()).collect();
    for kind in 0..4u8 {
        for id in 0..=255u8 {
            let bytes = [kind, id, 0, 0, 0, 0, 8, 0];
            if !known.contains(&[kind, id].to_vec()) {
                let unknown = MessageError::Unknown { bus: kind & 2 != 0, id };
                assert_eq!(Message::decode(&bytes), Err(unknown));
            }
        }
    }
}

#[test]
fn impossible_counts_and_statuses_are_errors() {
    let mut config = encoded(&Message::response(1, Response::GetConfig(CONFIG)));
    config[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Message::decode(&config), Err(MessageError::Truncated));
    let mut features = encoded(&Message::request(1, Request::SetDriverFeatures(blocks())));
    features[12..16].copy_from_slice(&0x4000_0001u32.to_le_bytes());
    assert_eq!(Message::decode(&features), Err(MessageError::Truncated));
    let mut bind = encoded(&Message::response(
        1,
        Response::BindQueue { index: 0, outcome: BindOutcome::Bound },
    ));
    bind[12] = 2;
    assert_eq!(Message::decode(&bind), Err(MessageError::Field("status")));
}

#[test]
fn arbitrary_bytes_never_panic() {
    // A fixed xorshift sequence: the same bytes in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..200_000u32 {
        let mut bytes = [0; 64];
        for chunk in bytes.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        let length = 8 + (round as usize % 57);
        bytes[0] &= 3;
        bytes[1] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x40, 0x41, 0x42, 0x80, 0x81]
            [bytes[1] as usize % 16];
        bytes[2..4].fill(0);
        bytes[6..8].copy_from_slice(&(length as u16).to_le_bytes());
        if let Ok(message) = Message::decode(&bytes[..length]) {
            let mut again = [0; 480];
            assert!(message.encode(&mut again).is_ok());
        }
    }
}

#[test]
fn encode_into_short_buffer_is_an_error() {
    for (message, size) in every_message() {
        let mut short = std::vec![0; size - 1];
        assert_eq!(message.encode(&mut short), Err(MessageError::TooLong), "{message:?}");
    }
}

#[test]
fn feature_blocks_return_the_low_64_bits() {
    assert_eq!(blocks().low_bits(), 0x3_0000_0200);
    assert_eq!(FeatureBlocks::new(1, &[1, 0, 0, 0, 9, 9, 9, 9]).low_bits(), 1 << 32);
    assert_eq!(FeatureBlocks::new(2, &[1, 0, 0, 0]).low_bits(), 0);
    let last = FeatureBlocks::new(u32::MAX, &[1, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(last.low_bits(), 0);
    assert!(last.iter().eq([(u32::MAX.into(), 1), (1 << 32, 1)]));
}

#[test]
fn queue_flags_decode_operations_and_reserved_bits() {
    use StateOperation::{Enable, Keep, KeepDisabled};
    let operations =
        [0, 1, 2, 3, 1 << 6 | 1, 1 << 31, 0x3d].map(|bits| VqueueFlags(bits).operation());
    let expected = [Some(KeepDisabled), Some(Enable), Some(Keep), None, None, None, Some(Enable)];
    assert_eq!(operations, expected);
    assert!(!VqueueFlags(1 << 2).has_size() && VqueueFlags(1 << 2).has_device());
    assert!(!VqueueFlags(0x3c).has_fields() && VqueueFlags(0x38).has_fields());
}

#[test]
fn spec_6_3_reserved_field_of_set_vqueue_round_trips() {
    let update = VqueueUpdate { reserved: 7, ..UPDATE };
    let message = Message::request(1, Request::SetVqueue(update));
    assert_eq!(Message::decode(&encoded(&message)), Ok(message));
}

#[test]
fn spec_6_6_config_event_may_omit_the_bytes_of_its_range() {
    let event = |bytes| {
        let config = ConfigChange { generation: 5, offset: 8, bytes };
        Message::event(Event::Config { status: 15, config })
    };
    let omitted = event(ChangedBytes::Omitted(8));
    assert_eq!(Message::decode(&encoded(&omitted)), Ok(omitted));
    // The event carries all bytes or none; a part of them is malformed.
    let mut some = encoded(&event(ChangedBytes::Sent(&[1; 8])));
    some.truncate(31);
    some[6] = 31;
    assert_eq!(Message::decode(&some), Err(MessageError::Truncated));
}
