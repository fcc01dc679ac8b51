//! Readers that ask for a lot and read nothing: they use a bounded share of memory, and others are
//! still served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::TestHost;

const MUCH: &str = "/v1/topics/orders/partitions/0/messages?max_bytes=16777216";
const LITTLE: &str = "/v1/topics/small/partitions/0/messages";
/// As text a zero is one byte, in JSON it is six.
const ZEROS: usize = (8 << 20) - (1 << 10);

/// Two large messages, and a small one elsewhere.
fn host() -> TestHost {
    let host = TestHost::start()
        .with_topic("orders", 1)
        .with_topic("small", 1);
    for _ in 0..2 {
        let raw = [("content-type", "application/octet-stream")];
        let sent = host.call("POST", "/v1/topics/orders/messages", &raw, vec![0; ZEROS]);
        assert_eq!(sent.status, 200);
    }
    let sent = host.post_json("/v1/topics/small/messages", r#"{"value":"a"}"#);
    assert_eq!(sent.status, 200);
    host
}

fn ask(host: &TestHost, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(host.address).expect("a connection");
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).expect("a timeout");
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    stream
}

/// Reads the status and nothing after it.
fn status(stream: &mut TcpStream) -> u16 {
    let mut line = [0; 12];
    stream.read_exact(&mut line).expect("a status line");
    let text = String::from_utf8_lossy(&line);
    let digits = text.rsplit(' ').next().unwrap_or_default();
    digits.parse().expect("a status")
}

#[test]
fn readers_that_do_not_read_do_not_take_all_memory_and_others_are_served() {
    let host = host();
    let mut idle = Vec::new();
    loop {
        let mut reader = ask(&host, MUCH);
        if status(&mut reader) != 200 {
            break;
        }
        idle.push(reader);
        assert!(idle.len() < 4, "answers of 100 MB each have no bound");
    }
    assert!(!idle.is_empty());
    let refused = host.get(MUCH);
    refused.refused(503, "busy");
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(host.get("/health/live").status, 200);
    assert_eq!(host.get(LITTLE).json()["messages"][0]["value"], "a");
    let value = host.get("/v1/topics/orders/partitions/0/messages/1/value");
    assert_eq!(value.bytes.len(), ZEROS);

    drop(idle);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut served = loop {
        let mut reader = ask(&host, MUCH);
        if status(&mut reader) == 200 {
            break reader;
        }
        assert!(Instant::now() < deadline, "room did not come back");
    };
    let mut answer = Vec::new();
    served.read_to_end(&mut answer).expect("all of it");
    assert!(answer.len() > 12 * ZEROS && answer.ends_with(b"}"));
}

#[test]
fn those_who_wait_for_messages_hold_no_room() {
    let host = host().with_topic("later", 1);
    let path = "/v1/topics/later/partitions/0/messages?max_bytes=16777216&wait_ms=30000";
    let mut waiting: Vec<_> = (0..30).map(|_| ask(&host, path)).collect();
    // Time enough for it to begin waiting; a test that goes on too soon proves less, but does not
    // fail.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(status(&mut ask(&host, MUCH)), 200);
    host.post_json("/v1/topics/later/messages", r#"{"value":"now"}"#);
    for reader in &mut waiting {
        assert_eq!(status(reader), 200);
        let mut answer = String::new();
        reader.read_to_string(&mut answer).expect("all of it");
        assert!(answer.contains("now"), "{answer}");
    }
}
