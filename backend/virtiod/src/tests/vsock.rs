//! Tests of the socket device (virtio 1.3 section 5.10), between a guest's driver and programs on
//! the host.

pub(super) mod guest;
mod limits;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use protocol::message::{Request, Response};

use self::guest::{
    ASK, BUFFER_SIZE, CID, DATA, Packet, REQUEST, RESET, RESPONSE, SHUTDOWN, Setting, UPDATE,
    patient, pattern, read,
};
use xen::DomId;

#[test]
fn device_publishes_its_context_id_and_socket() {
    let mut setting = Setting::new();
    let driver = &mut setting.driver;
    let info = driver.ask(Request::GetDeviceInfo, |answer| match answer {
        Response::GetDeviceInfo(info) => info,
        other => panic!("{other:?}"),
    });
    assert_eq!((info.device_id, info.config_size, info.max_virtqueues), (19, 8, 3));
    driver.ask(Request::GetConfig { offset: 0, size: 8 }, |answer| match answer {
        Response::GetConfig(config) => assert_eq!(config.data, CID.to_le_bytes()),
        other => panic!("{other:?}"),
    });
    let key =
        |key: &str| setting.host.hypervisor.store_read(&format!("{}/{key}", setting.ends.backend));
    assert_eq!(key("cid").unwrap(), "3");
    assert_eq!(key("socket").unwrap(), setting.path("").to_str().unwrap());
    setting.end();
}

#[test]
fn guest_connects_to_a_program_and_data_passes_both_ways() {
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    let mut program = setting.guest_connects(&listener, 52);
    let (up, down) = (pattern(10_000), pattern(9_000));
    setting.send(&Packet::data(52, &up));
    assert_eq!(read(&mut program, up.len()), up);
    program.write_all(&down).unwrap();
    let mut got = Vec::new();
    while got.len() < down.len() {
        got.extend(setting.expect(DATA).data);
    }
    assert_eq!(got, down);
    let stat = setting.host.stat(DomId(1)).stats;
    assert_eq!((stat.connections.made, stat.connections.open), (1, 1));
    assert_eq!((stat.bytes.written, stat.bytes.read), (10_000, 9_000));
    // The program ends, and the connection with it.
    drop(program);
    let packet = setting.expect(SHUTDOWN);
    assert_eq!(packet.flags, 2);
    setting.expect(RESET);
    assert_eq!(setting.host.stat(DomId(1)).stats.connections.open, 0);
    setting.end();
}

#[test]
fn program_connects_to_the_guest_and_its_early_data_arrives() {
    let mut setting = Setting::new();
    let mut program = patient(UnixStream::connect(setting.path("")).unwrap());
    program.write_all(b"CONNECT 1000\nearly").unwrap();
    let host = setting.expect(REQUEST).host;
    setting.send(&Packet::new(RESPONSE, host));
    assert_eq!(setting.expect(DATA).data, b"early");
    let line = format!("OK {host}\n");
    assert_eq!(read(&mut program, line.len()), line.as_bytes());
    setting.send(&Packet::data(host, b"answer"));
    // The guest closes: its data is delivered, then the end.
    setting.send(&Packet::shutdown(host, 3));
    assert_eq!(read(&mut program, 6), b"answer");
    setting.expect(RESET);
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    setting.end();
}

#[test]
fn each_direction_shuts_down_separately() {
    let mut setting = Setting::new();
    let (mut program, host) = setting.host_connects();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(setting.expect(SHUTDOWN).flags, 2);
    setting.send(&Packet::data(host, b"still here"));
    assert_eq!(read(&mut program, 10), b"still here");
    setting.send(&Packet::shutdown(host, 2));
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    setting.expect(RESET);
    // The other way round.
    let (mut program, host) = setting.host_connects();
    setting.send(&Packet::shutdown(host, 2));
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    program.write_all(b"still here").unwrap();
    assert_eq!(setting.expect(DATA).data, b"still here");
    drop(program);
    setting.expect(RESET);
    setting.end();
}

#[test]
fn connection_without_a_listener_is_refused() {
    let mut setting = Setting::new();
    setting.send(&Packet::new(REQUEST, 53));
    let packet = setting.expect(RESET);
    assert_eq!((packet.host, packet.guest), (53, 1000));
    // The guest's own refusal.
    let mut program = patient(UnixStream::connect(setting.path("")).unwrap());
    program.write_all(b"CONNECT 1000\n").unwrap();
    let host = setting.expect(REQUEST).host;
    setting.send(&Packet::new(RESET, host));
    assert_eq!(program.read(&mut [0]).unwrap(), 0, "closed without OK");
    // A program that sends anything else is disconnected.
    let mut program = patient(UnixStream::connect(setting.path("")).unwrap());
    program.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_ne!(program.read(&mut [0]).ok(), Some(1));
    setting.end();
}

#[test]
fn device_respects_the_guests_credit() {
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    setting.send(&Packet { room: 100, ..Packet::new(REQUEST, 52) });
    setting.expect(RESPONSE);
    let mut program = listener.accept().unwrap().0;
    let data = pattern(250);
    program.write_all(&data).unwrap();
    assert_eq!(setting.expect(DATA).data, data[..100]);
    setting.expect(ASK);
    // Doorbells and messages in between give no credit.
    for _ in 0..20 {
        setting.driver.status();
    }
    let update = |forwarded| Packet { forwarded, room: 100, ..Packet::new(UPDATE, 52) };
    setting.send(&update(60));
    assert_eq!(setting.expect(DATA).data, data[100..160]);
    setting.expect(ASK);
    setting.send(&update(160));
    assert_eq!(setting.expect(DATA).data, data[160..]);
    setting.end();
}

#[test]
fn guest_gets_credit_when_the_program_reads_or_on_request() {
    let mut setting = Setting::new();
    let listener = setting.listen(52);
    let mut program = setting.guest_connects(&listener, 52);
    let chunk = pattern(32 << 10);
    let (mut sent, mut forwarded) = (0usize, 0u32);
    // As much as the socket and the device hold, by the rules of credit.
    loop {
        setting.send(&Packet::new(ASK, 52));
        let mut packet = setting.receive();
        while packet.operation == UPDATE && packet.forwarded != forwarded {
            forwarded = packet.forwarded;
            setting.send(&Packet::new(ASK, 52));
            packet = setting.receive();
        }
        if sent - forwarded as usize + chunk.len() > BUFFER_SIZE {
            break;
        }
        setting.send(&Packet::data(52, &chunk));
        sent += chunk.len();
    }
    assert!(sent >= BUFFER_SIZE, "{sent}");
    let got = read(&mut program, sent);
    assert!(got.chunks(chunk.len()).all(|part| part == chunk), "in order");
    while (forwarded as usize) < sent {
        forwarded = setting.expect(UPDATE).forwarded;
        if sent - forwarded as usize <= BUFFER_SIZE / 2 {
            break;
        }
    }
    setting.end();
}
