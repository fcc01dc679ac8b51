//! Several doors on one host: an echo beside HTTP, with the same bounds, stopped together with it,
//! and within the same memory budget.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::*;
use crate::net::{Connection, Phase};

const PATIENCE: Duration = Duration::from_secs(20);
const FULL: &[u8] = b"full\n";
const BYE: &[u8] = b"bye\n";

/// A door that echoes what it receives, and reserves as much room as it is asked to.
#[derive(Clone)]
struct Echo {
    budgets: Budgets,
    stopping: CancellationToken,
    /// How long it continues after it was told to stop.
    work: Duration,
}

impl Echo {
    async fn serve(self, mut connection: Connection) {
        if connection.seat.is_refused() {
            return connection.end(Some(FULL)).await;
        }
        let line = connection.seat.line().clone();
        let (mut buffer, mut held) = ([0; 64], Vec::new());
        loop {
            let read = tokio::select! {
                read = connection.stream.read(&mut buffer) => read,
                () = self.stopping.cancelled() => {
                    sleep(self.work).await;
                    return connection.end(Some(BYE)).await;
                }
            };
            let Ok(count @ 1..) = read else {
                return connection.end(None).await;
            };
            line.enter(Phase::Session, Duration::ZERO);
            if &buffer[..count] == b"hold all\n" {
                let all = self.budgets.sent.bytes_max();
                held.extend(self.budgets.sent.take(all, Duration::ZERO).await);
            }
            if connection.stream.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
}

/// A host in memory with an echo beside its HTTP door.
async fn with_echo(connections_max: usize, work: Duration) -> (Host, SocketAddr) {
    let mut config = Config::default();
    config.listen.http.address = "127.0.0.1:0".to_owned();
    config.engine.kind = EngineKind::Memory;
    config.stop_deadline_ms = 3_000;
    let mut host = Host::start(config).await.expect("a host");
    let limits = DoorLimits {
        regular_max: connections_max,
        reserved_max: 0,
        idle: PATIENCE,
    };
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let listener =
        Listener::new(socket, limits, None, Arc::new(SystemClock::new())).expect("a door");
    let echo = Echo {
        budgets: host.doors.budgets().clone(),
        stopping: listener.stopping(),
        work,
    };
    let serve = move |connection| echo.clone().serve(connection);
    host.doors.open("echo", listener, serve);
    let address = host.doors.address("echo").expect("it is open");
    (host, address)
}

async fn said(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).await.expect("sent");
    let mut answer = vec![0; text.len()];
    let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.expect("in time").expect("an echo");
    answer
}

async fn rest_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    read.expect("in time").expect("an orderly end");
    rest
}

/// The status and body of an HTTP answer.
async fn asked(address: SocketAddr, method: &str, path: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let answer = String::from_utf8(rest_of(&mut stream).await).expect("text");
    let status = answer.get(9..12).unwrap_or_default().to_owned();
    (status, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_has_its_own_bound_and_others_do_not_notice() {
    let (host, echo) = with_echo(2, Duration::ZERO).await;
    let mut served = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(echo).await.expect("a connection");
        assert_eq!(said(&mut stream, b"a\n").await, b"a\n");
        served.push(stream);
    }
    let mut beyond = TcpStream::connect(echo).await.expect("a connection");
    assert_eq!(rest_of(&mut beyond).await, FULL);
    let (status, _) = asked(host.address(), "GET", "/health/ready", "").await;
    assert_eq!(status, "200");
    // A closed connection makes room.
    drop(served.pop());
    let end = Instant::now() + PATIENCE;
    loop {
        let mut stream = TcpStream::connect(echo).await.expect("a connection");
        stream.write_all(b"b\n").await.expect("sent");
        let mut answer = [0; 2];
        if stream.read_exact(&mut answer).await.is_ok() && &answer == b"b\n" {
            break;
        }
        assert!(Instant::now() < end, "there is no room again");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_door_holds_the_other_one_does_not_have() {
    let (host, echo) = with_echo(2, Duration::ZERO).await;
    let http = host.address();
    let topic = r#"{"name":"t","partitions":1,"durability":"none"}"#;
    assert_eq!(asked(http, "POST", "/v1/topics", topic).await.0, "201");
    let messages = r#"{"messages":[{"value":"a"}]}"#;
    let path = "/v1/topics/t/messages";
    assert_eq!(asked(http, "POST", path, messages).await.0, "200");
    let fetch = "/v1/topics/t/partitions/0/messages?from=0";
    assert_eq!(asked(http, "GET", fetch, "").await.0, "200");

    let mut holder = TcpStream::connect(echo).await.expect("a connection");
    said(&mut holder, b"hold all\n").await;
    let (status, answer) = asked(http, "GET", fetch, "").await;
    assert_eq!(status, "503", "{answer}");
    assert!(
        answer.contains("the memory for answers is in use"),
        "{answer}"
    );
    // Incoming data has its own budget.
    assert_eq!(asked(http, "POST", path, messages).await.0, "200");

    drop(holder);
    let end = Instant::now() + PATIENCE;
    while asked(http, "GET", fetch, "").await.0 != "200" {
        assert!(Instant::now() < end, "the room does not come back");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_closes_every_door_and_waits_for_what_is_under_way_on_each() {
    let work = Duration::from_millis(700);
    let (host, echo) = with_echo(2, work).await;
    let http = host.address();
    let mut talking = TcpStream::connect(echo).await.expect("a connection");
    said(&mut talking, b"a\n").await;
    let began = Instant::now();
    let stopped = tokio::spawn(host.stop());
    // While a door ends, its last bytes arrive, and no new connection is accepted.
    let end = Instant::now() + PATIENCE;
    for address in [echo, http] {
        while TcpStream::connect(address).await.is_ok() {
            assert!(Instant::now() < end, "{address} is still open");
            sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(!stopped.is_finished(), "it waits for the echo");
    assert_eq!(rest_of(&mut talking).await, BYE);
    drop(talking);
    stopped.await.expect("a stop");
    assert!(began.elapsed() >= work);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_by_the_deadline_is_cut_off() {
    let (host, echo) = with_echo(2, Duration::from_secs(3_600)).await;
    let mut talking = TcpStream::connect(echo).await.expect("a connection");
    said(&mut talking, b"a\n").await;
    let stopped = timeout(PATIENCE, host.stop()).await;
    stopped.expect("a stop within its deadline");
    assert_eq!(rest_of(&mut talking).await, b"");
}
