//! HTTP connections: every complete request gets an answer that its client can read, the answer
//! tells when it ends the connection, requests that a proxy could read differently are refused, and
//! clients that take all connections do not keep administration out.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{TestHost, config};

const MESSAGES: &str = "/v1/topics/t/messages";
/// More than the buffers of a connection hold.
const BODY_BYTES: usize = 12 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// The header of a raw body.
const PLAIN: &str = "content-type: text/plain\r\n";

fn host() -> TestHost {
    TestHost::start().with_topic("t", 1)
}

fn connect(host: &TestHost) -> TcpStream {
    let stream = TcpStream::connect(host.address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Status, head in lower case, and body of the only answer.
fn answer(stream: &mut TcpStream) -> (u16, String, String) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let head_ends = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let count = stream.read(&mut piece).expect("an answer");
        assert!(
            count > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.extend_from_slice(&piece[..count]);
    };
    let head = String::from_utf8_lossy(&bytes[..head_ends]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |digits| digits.parse().expect("a length"));
    let mut body = bytes.split_off(head_ends);
    while body.len() < length {
        let count = stream.read(&mut piece).expect("a body");
        assert!(count > 0, "the answer breaks off");
        body.extend_from_slice(&piece[..count]);
    }
    let status = head[9..12].parse().expect("a status");
    (status, head, String::from_utf8_lossy(&body).into_owned())
}

fn code(body: &str) -> String {
    let body: Value = serde_json::from_str(body).expect("the one shape");
    let text = |field: &str| body["error"][field].as_str().expect(field).to_owned();
    assert!(!text("message").is_empty() && !text("hint").is_empty());
    text("code")
}

/// Sends everything before reading anything.
fn sent_first(host: &TestHost, head: &str, bytes: usize, chunked: bool) -> (u16, String, String) {
    let mut stream = connect(host);
    let framing = match chunked {
        true => "transfer-encoding: chunked".to_owned(),
        false => format!("content-length: {bytes}"),
    };
    let head = format!("{head}content-type: text/plain\r\n{framing}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..bytes / piece.len() {
        if chunked {
            stream.write_all(b"100000\r\n").expect("sent");
        }
        stream.write_all(&piece).expect("sent");
        if chunked {
            stream.write_all(b"\r\n").expect("sent");
        }
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n").expect("sent");
    }
    answer(&mut stream)
}

#[test]
fn every_refusal_is_read_by_a_client_that_sends_everything_first() {
    let host = host();
    let local = "host: localhost\r\n";
    let foreign = "host: broker.example\r\n";
    for (method, path, headers, wanted) in [
        ("POST", "/v1/topics/none/messages", local, 404),
        ("POST", "/v1/nothing", local, 404),
        ("POST", "/v1/topics/t/messages/", local, 404),
        ("PUT", MESSAGES, local, 405),
        ("POST", "/health/ready", local, 405),
        ("GET", "/v1/nothing", local, 404),
        ("POST", MESSAGES, foreign, 403),
        ("POST", "/v1/topics/a%2Fb/messages", local, 400),
        ("POST", "/v1/topics/t/messages?partition=x", local, 400),
        ("POST", "/v1/topics", local, 413),
        (
            "POST",
            MESSAGES,
            "host: localhost\r\nidempotency-key: \"open\r\n",
            400,
        ),
        ("POST", MESSAGES, "host: localhost\r\norigin: null\r\n", 403),
        ("POST", MESSAGES, "", 400),
    ] {
        for chunked in [false, true] {
            let head = format!("{method} {path} HTTP/1.1\r\n{headers}");
            let (status, _, body) = sent_first(&host, &head, BODY_BYTES, chunked);
            assert_eq!(status, wanted, "{method} {path} {headers}: {body}");
            code(&body);
        }
    }
    assert_eq!(
        host.call("POST", MESSAGES, &[("content-type", "text/plain")], "x")
            .status,
        200
    );
}

#[test]
fn a_body_above_every_bound_is_answered_while_it_is_still_sent() {
    let host = host();
    let head = format!("POST {MESSAGES} HTTP/1.1\r\nhost: localhost\r\n");
    for chunked in [false, true] {
        let (status, head, body) = sent_first(&host, &head, 128 << 20, chunked);
        assert_eq!((status, code(&body).as_str()), (413, "too-large"));
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    }
}

#[test]
fn a_client_that_asks_first_is_refused_without_being_asked_for_its_body() {
    let host = host();
    for (path, length, wanted) in [
        ("/v1/topics/none/messages", "1000000", 404),
        ("/v1/nothing", "1000000", 404),
        (MESSAGES, "90000000", 413),
    ] {
        let mut stream = connect(&host);
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n{PLAIN}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let (status, head, _) = answer(&mut stream);
        assert_eq!(status, wanted, "{head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    }
}

#[test]
fn who_was_told_to_go_on_and_is_refused_after_all_reads_that() {
    let host = host();
    let mut stream = connect(&host);
    let head = format!(
        "POST {MESSAGES} HTTP/1.1\r\nhost: localhost\r\n{PLAIN}expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    assert_eq!(answer(&mut stream).0, 100);
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..40 {
        stream.write_all(b"100000\r\n").expect("sent");
        stream.write_all(&piece).expect("sent");
        stream.write_all(b"\r\n").expect("sent");
    }
    stream.write_all(b"0\r\n\r\n").expect("sent");
    assert_eq!(answer(&mut stream).0, 413);
}

#[test]
fn a_client_that_closes_its_side_is_answered() {
    let host = host();
    let mut stream = connect(&host);
    let head = format!(
        "POST {MESSAGES} HTTP/1.1\r\nhost: localhost\r\n{PLAIN}content-length: 100000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.write_all(&[b'x'; 100_000]).expect("sent");
    stream.shutdown(Shutdown::Write).expect("closed");
    assert_eq!(answer(&mut stream).0, 200);

    let waiting = "/v1/topics/t/partitions/0/messages?from=latest&wait_ms=30000";
    let began = Instant::now();
    let mut stream = connect(&host);
    let head = format!("GET {waiting} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    stream.shutdown(Shutdown::Write).expect("closed");
    assert_eq!(answer(&mut stream).0, 200);
    assert!(began.elapsed() < Duration::from_secs(25), "it was not kept");
}

#[test]
fn a_body_that_breaks_off_is_no_message() {
    let host = host();
    let mut stream = connect(&host);
    let head = format!(
        "POST {MESSAGES} HTTP/1.1\r\nhost: localhost\r\n{PLAIN}content-length: 1000\r\n\r\nhalf"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    stream.shutdown(Shutdown::Write).expect("closed");
    assert_eq!(answer(&mut stream).0, 400);
    assert_eq!(host.get("/v1/topics/t").json()["ends"][0]["end"], 0);
}

#[test]
fn what_a_proxy_could_read_differently_is_refused() {
    let host = host();
    let local = "host: localhost\r\n";
    for (headers, wanted) in [
        (
            "host: localhost\r\ntransfer-encoding: gzip, chunked\r\n",
            501,
        ),
        ("host: localhost\r\ntransfer-encoding: gzip\r\n", 400),
        (
            "host: localhost\r\ntransfer-encoding: chunked, chunked\r\n",
            400,
        ),
        (
            "host: localhost\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            400,
        ),
        (
            "host: localhost\r\nhost: localhost\r\ncontent-length: 0\r\n",
            400,
        ),
        ("content-length: 0\r\n", 400),
        (
            "host: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n",
            400,
        ),
    ] {
        let mut stream = connect(&host);
        let request = format!("POST {MESSAGES} HTTP/1.1\r\n{PLAIN}{headers}\r\n0\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let (status, head, body) = answer(&mut stream);
        assert_eq!(status, wanted, "{headers} {body}");
        code(&body);
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    }
    let mut old = connect(&host);
    old.write_all(b"GET /health/live HTTP/1.0\r\n\r\n")
        .expect("sent");
    assert_eq!(answer(&mut old).0, 200, "HTTP/1.0 needs no Host");
    let mut one = connect(&host);
    let request = format!(
        "POST {MESSAGES} HTTP/1.1\r\n{local}{PLAIN}transfer-encoding: Chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    );
    one.write_all(request.as_bytes()).expect("sent");
    assert_eq!(answer(&mut one).0, 200);
}

#[test]
fn what_no_route_sees_is_refused_in_the_one_shape() {
    let host = host();
    let long = format!(
        "GET /health/live HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "y".repeat(70_000)
    );
    let many = format!(
        "GET /health/live HTTP/1.1\r\nhost: localhost\r\n{}\r\n",
        "x: y\r\n".repeat(200)
    );
    let just = 64 << 10;
    let begin = "GET /health/live HTTP/1.1\r\nhost: localhost\r\nx: ";
    let above = format!("{begin}{}\r\n\r\n", "y".repeat(just + 1 - begin.len() - 4));
    for (request, wanted) in [
        (long.as_str(), 431),
        (&many, 431),
        (&above, 431),
        ("nonsense\r\n\r\n", 400),
        ("GET /health/live HTTP/1.1\r\nno header\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ] {
        let mut stream = connect(&host);
        stream.write_all(request.as_bytes()).expect("sent");
        let (status, head, body) = answer(&mut stream);
        assert_eq!(status, wanted, "{head}{body}");
        code(&body);
        assert!(head.contains("\r\nx-request-id: "), "{head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    }
    let fits = format!("{begin}{}\r\n\r\n", "y".repeat(just - begin.len() - 4));
    let mut stream = connect(&host);
    stream.write_all(fits.as_bytes()).expect("sent");
    assert_eq!(answer(&mut stream).0, 200);
}

#[test]
fn no_answer_is_for_caches() {
    let host = host();
    for path in [
        "/v1/topics",
        "/v1/topics/none",
        "/v1/nothing",
        "/health/live",
        "/metrics",
        "/openapi.json",
        "/v1/topics/t/partitions/0/messages",
        "/v1/topics/t/messages",
    ] {
        assert_eq!(
            host.get(path).headers["cache-control"],
            "no-store",
            "{path}"
        );
    }
}

#[test]
fn an_idle_connection_is_kept_for_as_long_as_is_said() {
    let mut config = config();
    config.listen.http.idle_ms = 2_000;
    let host = TestHost::with(config);
    let mut stream = connect(&host);
    let request = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for _ in 0..2 {
        stream.write_all(request).expect("sent");
        let (_, head, _) = answer(&mut stream);
        assert!(head.contains("\r\nkeep-alive: timeout=1\r\n"), "{head}");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(stream.read(&mut [0; 1]).expect("an end"), 0);
    let by_default = TestHost::start().get("/health/live");
    assert_eq!(by_default.headers["keep-alive"], "timeout=179");
}

#[test]
fn a_silent_connection_makes_room_for_one_that_asks() {
    let mut config = config();
    config.listen.http.connections_max = 2;
    let host = TestHost::with(config).with_topic("t", 1);
    let _silent: Vec<TcpStream> = (0..50).map(|_| connect(&host)).collect();
    let _begun: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = connect(&host);
            stream.write_all(b"GET /health").expect("sent");
            stream
        })
        .collect();
    let end = Instant::now() + PATIENCE;
    // A client that has begun gets a moment to continue.
    while host
        .call("POST", MESSAGES, &[("content-type", "text/plain")], "x")
        .status
        != 200
    {
        assert!(Instant::now() < end, "no room is made");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn where_every_connection_is_at_work_administration_is_served_and_others_are_told() {
    let mut config = config();
    config.listen.http.connections_max = 8;
    let host = TestHost::with(config)
        .with_topic("t", 1)
        .with_topic("quiet", 1);
    let ask = |request: &str| {
        let mut stream = connect(&host);
        stream.write_all(request.as_bytes()).expect("sent");
        stream
    };
    let wait = "GET /v1/topics/quiet/partitions/0/messages?wait_ms=30000 HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let _waiting: Vec<TcpStream> = (0..6).map(|_| ask(wait)).collect();
    let end = Instant::now() + PATIENCE;
    loop {
        let text = String::from_utf8(host.get("/metrics").bytes).expect("text");
        if text.contains("millrace_fetches_waiting 6") {
            break;
        }
        assert!(Instant::now() < end, "{text}");
    }
    let (status, head, body) = answer(&mut ask(wait));
    assert_eq!((status, code(&body).as_str()), (503, "too-many-waiting"));
    assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");

    let slow = format!(
        "POST {MESSAGES} HTTP/1.1\r\nhost: localhost\r\n{PLAIN}content-length: 10\r\n\r\nx"
    );
    let mut at_work: Vec<TcpStream> = (0..2).map(|_| ask(&slow)).collect();
    let (status, head, body) = loop {
        let mut produce = ask(&format!(
            "POST {MESSAGES} HTTP/1.1\r\nhost: localhost\r\n{PLAIN}content-length: 1\r\n\r\nx"
        ));
        let answer = answer(&mut produce);
        if answer.0 != 200 {
            break answer;
        }
        assert!(Instant::now() < end, "the bound is not met");
        // One of them may have arrived while an idle connection still had its place, and been
        // refused.
        at_work.push(ask(&slow));
    };
    assert_eq!(
        (status, code(&body).as_str()),
        (503, "too-many-connections")
    );
    assert!(head.contains("\r\nretry-after: 1\r\n") && head.contains("\r\nconnection: close\r\n"));
    for path in ["/health/ready", "/metrics", "/v1/topics/t"] {
        let mut stream = ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
        assert_eq!(answer(&mut stream).0, 200, "{path}");
    }
}

fn texts(page: &Value) -> Vec<String> {
    let messages = page["messages"].as_array().expect("messages");
    let text = |message: &Value| {
        format!(
            "{}/{}",
            message["partition"],
            message["value"].as_str().expect("text")
        )
    };
    messages.iter().map(text).collect()
}

#[test]
fn one_fetch_reads_and_awaits_all_partitions() {
    let host = TestHost::start().with_topic("many", 200);
    let send = |partition: u32, value: &str| {
        let body = json!({"partition": partition, "value": value}).to_string();
        assert_eq!(host.post_json("/v1/topics/many/messages", body).status, 200);
    };
    send(7, "a");
    send(150, "b");
    let first = host.get("/v1/topics/many/messages").json();
    let mut seen = texts(&first);
    seen.sort();
    assert_eq!(seen, ["150/b", "7/a"]);
    let next = first["next"].as_str().expect("a cursor").to_owned();
    let path = format!("/v1/topics/many/messages?from={next}&wait_ms=30000");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| host.get(&path).json());
        std::thread::sleep(Duration::from_millis(100));
        send(199, "c");
        assert_eq!(texts(&waiting.join().expect("an answer")), ["199/c"]);
    });
    let latest = host.get("/v1/topics/many/messages?from=latest").json();
    assert_eq!(texts(&latest), [""; 0]);
    let some = host.get("/v1/topics/many/messages?partitions=7-20").json();
    assert_eq!(texts(&some), ["7/a"]);
    for wrong in [
        "from=7",
        "from=200:1",
        "from=1:5&from_time=2026-11-21T10:00:00Z",
        "partitions=5-200",
    ] {
        let status = host
            .get(&format!("/v1/topics/many/messages?{wrong}"))
            .status;
        assert!((400..500).contains(&status), "{wrong}: {status}");
    }
}

#[test]
fn a_busy_partition_does_not_starve_the_others_of_a_fetch_over_all() {
    let host = TestHost::start().with_topic("two", 2);
    let many: Vec<Value> = (0..500)
        .map(|n| json!({"partition": 0, "value": n.to_string()}))
        .collect();
    host.post_json(
        "/v1/topics/two/messages",
        json!({"messages": many}).to_string(),
    );
    host.post_json(
        "/v1/topics/two/messages",
        r#"{"partition": 1, "value": "rare"}"#,
    );
    let page = host.get("/v1/topics/two/messages?max=10").json();
    assert!(texts(&page).contains(&"1/rare".to_owned()), "{page}");
    let mut from = page["next"].as_str().expect("a cursor").to_owned();
    let mut count = texts(&page).len();
    while count < 501 {
        let page = host
            .get(&format!("/v1/topics/two/messages?from={from}&max=100"))
            .json();
        page["next"]
            .as_str()
            .expect("a cursor")
            .clone_into(&mut from);
        assert!(!texts(&page).is_empty());
        count += texts(&page).len();
    }
    assert_eq!((count, from.as_str()), (501, "0:500,1:1"));
}

#[test]
fn a_partition_that_cannot_be_read_on_is_named_beside_what_can() {
    let host = TestHost::start().with_topic("two", 2);
    for partition in 0..2 {
        for value in ["a", "b"] {
            let body = json!({"partition": partition, "value": value}).to_string();
            host.post_json("/v1/topics/two/messages", body);
        }
    }
    let trimmed = host.post_json(
        "/v1/topics/two/trim",
        r#"{"partition": 0, "before": "end"}"#,
    );
    assert_eq!(
        trimmed.status,
        200,
        "{}",
        String::from_utf8_lossy(&trimmed.bytes)
    );
    let page = host.get("/v1/topics/two/messages?from=0:1,1:1").json();
    assert_eq!(texts(&page), ["1/b"]);
    let problem = &page["problems"][0];
    assert_eq!(
        (&problem["partition"], &problem["code"], &problem["next"]),
        (&json!(0), &json!("offset-not-kept"), &json!(2))
    );
    let refused = host.get("/v1/topics/two/messages?from=0:1,1:2");
    refused.refused(404, "offset-not-kept");
    assert_eq!(refused.json()["error"]["partition"], 0);
}
