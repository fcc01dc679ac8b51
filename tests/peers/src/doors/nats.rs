//! NATS JetStream: a stream in files, published to with acknowledgements and read by a pull
//! consumer that acknowledges nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use serde_json::{Value, json};

use super::{Door, Each, FETCH_MESSAGES, FETCH_WAIT_MS, Front, Reader, Taken};
use crate::line::Line;

const LINE_END: &[u8] = b"\r\n";
/// A placeholder for the destination of a request's answer, until it is known which connection
/// sends it.
const ANY_INBOX: &str = "_INBOX.00000";
/// Time after which the server removes a reader that no longer pulls.
const INACTIVE_NS: u64 = 30_000_000_000;
/// Number of readers so far, for unique names: an existing consumer would continue at its position.
static READERS: AtomicU64 = AtomicU64::new(0);
/// The beginning of an answer of JetStream that is a refusal.
const REFUSED: &[u8] = b"{\"error\"";

pub(crate) struct Nats {
    pub(crate) address: SocketAddr,
}

/// What the server sent, read from the front.
enum Said<'a> {
    Part,
    /// A message, its status if it is not from the stream, and its length in all.
    Message {
        head: &'a [u8],
        body: &'a [u8],
        whole: usize,
    },
    Other(usize),
}

impl Nats {
    /// Sends one request to JetStream and returns the answer.
    fn ask(line: &mut Line, api: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let reply = api_inbox(line.port);
        line.send(&publish(&format!("$JS.API.{api}"), &reply, body.as_bytes()))?;
        loop {
            match said(line.held())? {
                Said::Part => line.more()?,
                Said::Other(bytes) => line.take(bytes),
                Said::Message { body, whole, .. } => {
                    let answer = serde_json::from_slice(body);
                    line.take(whole);
                    return accepted(answer.context("an answer that is no JSON")?);
                }
            }
        }
    }
}

impl Door for Nats {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn make(&self, topic: &str) -> Result<()> {
        let stream =
            json!({ "name": topic, "subjects": [topic], "storage": "file", "num_replicas": 1 });
        let api = format!("STREAM.CREATE.{topic}");
        Self::ask(&mut self.open()?, &api, &stream).map(drop)
    }

    fn remove(&self, topic: &str) -> Result<()> {
        let api = format!("STREAM.DELETE.{topic}");
        Self::ask(&mut self.open()?, &api, &json!({})).map(drop)
    }

    /// Acknowledgements arrive at the connection's inbox, in order.
    fn open(&self) -> Result<Line> {
        let mut line = Line::open(self.address)?;
        let hello =
            json!({ "verbose": false, "pedantic": false, "headers": true, "no_responders": true });
        let (inbox, api_inbox) = (inbox(line.port), api_inbox(line.port));
        let said = format!("CONNECT {hello}\r\nSUB {inbox} 1\r\nSUB {api_inbox} 2\r\nPING\r\n");
        line.send(said.as_bytes())?;
        loop {
            let held = line.held();
            if let Some(at) = memmem::find(held, b"PONG\r\n") {
                line.take(at + b"PONG\r\n".len());
                return Ok(line);
            }
            ensure!(!held.starts_with(b"-ERR"), "NATS refused a connection");
            line.more()?;
        }
    }

    fn produce(&self, topic: &str, values: &[&str]) -> Vec<u8> {
        let messages = values
            .iter()
            .map(|value| publish(topic, ANY_INBOX, value.as_bytes()));
        messages.collect::<Vec<_>>().concat()
    }

    fn has_batches(&self) -> bool {
        false
    }

    fn addressed(&self, line: &Line, mut request: Vec<u8>) -> Vec<u8> {
        let inbox = inbox(line.port);
        let places: Vec<usize> = memmem::find_iter(&request, ANY_INBOX).collect();
        for at in places {
            request[at..at + inbox.len()].copy_from_slice(inbox.as_bytes());
        }
        request
    }

    /// PINGs are not answered: the server waits two minutes before it gives up, and no load takes
    /// that long.
    fn front(&self, came: &[u8]) -> Result<Front> {
        Ok(match said(came)? {
            Said::Part => Front::Part,
            Said::Other(bytes) => Front::Aside(bytes),
            Said::Message { head, body, whole } => {
                if !head.is_empty() || body.starts_with(REFUSED) {
                    bail!("NATS refused: {}", String::from_utf8_lossy(&came[..whole]));
                }
                Front::Answer(whole)
            }
        })
    }

    fn reader(&self, topic: &str, line: &mut Line) -> Result<Box<dyn Reader>> {
        // A new consumer each time; unused ones are removed by the server.
        let name = format!("reader-{}", READERS.fetch_add(1, Ordering::Relaxed));
        let consumer = json!({ "stream_name": topic, "config": {
            "name": name, "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant",
            "inactive_threshold": INACTIVE_NS,
        } });
        let api = format!("CONSUMER.CREATE.{topic}.{name}");
        Self::ask(line, &api, &consumer)?;
        Ok(Box::new(Pulling {
            subject: format!("$JS.API.CONSUMER.MSG.NEXT.{topic}.{name}"),
            inbox: inbox(line.port),
            wanted: 0,
        }))
    }
}

/// The subject for a connection's acknowledgements and messages. Subjects are global to the server,
/// so each connection needs its own.
fn inbox(port: u16) -> String {
    format!("_INBOX.{port:05}")
}

/// The subject for answers of the API, separate from those.
fn api_inbox(port: u16) -> String {
    format!("_INBOX.api.{port}")
}

struct Pulling {
    subject: String,
    inbox: String,
    /// Messages of the last request that have not arrived yet.
    wanted: u64,
}

impl Reader for Pulling {
    fn ask(&mut self) -> Vec<u8> {
        self.wanted = FETCH_MESSAGES;
        let body = json!({ "batch": FETCH_MESSAGES, "expires": FETCH_WAIT_MS * 1_000_000 });
        publish(&self.subject, &self.inbox, body.to_string().as_bytes())
    }

    fn take(&mut self, came: &[u8], mut each: Option<Each<'_>>) -> Result<Taken> {
        let mut taken = Taken::default();
        while !taken.is_answered {
            match said(&came[taken.bytes..])? {
                Said::Part => break,
                Said::Other(bytes) => taken.bytes += bytes,
                Said::Message { head, body, whole } => {
                    taken.bytes += whole;
                    if head.is_empty() {
                        taken.messages += 1;
                        self.wanted = self.wanted.saturating_sub(1);
                        taken.is_answered = self.wanted == 0;
                        if let Some(each) = &mut each {
                            each(body);
                        }
                    } else {
                        // 404: no messages; 408: the request has expired. No other status should
                        // occur.
                        let is_over = [" 404", " 408"].iter();
                        let is_over = is_over.map(|status| memmem::find(head, status.as_bytes()));
                        if is_over.flatten().next().is_none() {
                            bail!("NATS refused: {}", String::from_utf8_lossy(head));
                        }
                        taken.is_answered = true;
                    }
                }
            }
        }
        Ok(taken)
    }
}

fn publish(subject: &str, reply: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("PUB {subject} {reply} {}\r\n", body.len());
    [head.as_bytes(), body, LINE_END].concat()
}

fn accepted(answer: Value) -> Result<Value> {
    if let Some(error) = answer.get("error") {
        bail!("NATS refused: {error}");
    }
    Ok(answer)
}

fn said(came: &[u8]) -> Result<Said<'_>> {
    let Some(end) = memmem::find(came, LINE_END) else {
        return Ok(Said::Part);
    };
    let line = &came[..end];
    let begins = end + LINE_END.len();
    let has_head = line.starts_with(b"HMSG ");
    if !has_head && !line.starts_with(b"MSG ") {
        if line.starts_with(b"-ERR") {
            bail!("NATS: {}", String::from_utf8_lossy(line));
        }
        return Ok(Said::Other(begins));
    }
    let mut numbers = line.rsplit(|&byte| byte == b' ').map(number);
    let length = numbers.next().flatten().context("a message's length")?;
    let head = match has_head {
        true => numbers.next().flatten().context("a message's head")?,
        false => 0,
    };
    let whole = begins + length + LINE_END.len();
    if came.len() < whole {
        return Ok(Said::Part);
    }
    ensure!(head <= length, "a head that is longer than its message");
    Ok(Said::Message {
        head: &came[begins..begins + head],
        body: &came[begins + head..begins + length],
        whole,
    })
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOOR: Nats = Nats {
        address: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1),
    };

    #[test]
    fn acknowledgements_are_told_from_asides_and_refusals() {
        let front = |came: &[u8]| DOOR.front(came);
        assert_eq!(front(b"PING\r\nMSG").unwrap(), Front::Aside(6));
        let good = b"MSG _INBOX.peers 1 9\r\n{\"seq\":1}\r\n";
        assert_eq!(front(good).unwrap(), Front::Answer(good.len()));
        assert_eq!(front(&good[..good.len() - 1]).unwrap(), Front::Part);
        assert!(front(b"MSG _INBOX.peers 1 12\r\n{\"error\":{}}\r\n").is_err());
        assert!(front(b"HMSG _INBOX.peers 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n").is_err());
    }

    #[test]
    fn a_request_says_the_inbox_of_the_connection_that_sends_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Line::open(listener.local_addr().unwrap()).unwrap();
        let request = DOOR.addressed(&line, DOOR.produce("t", &["A", "B"]));
        let request = String::from_utf8(request).unwrap();
        let one = |value| format!("PUB t _INBOX.{:05} 1\r\n{value}\r\n", line.port);
        assert_eq!(request, one("A") + &one("B"));
    }

    #[test]
    fn a_pull_ends_with_its_last_message_or_its_time() {
        let mut reader = Pulling {
            subject: "s".into(),
            inbox: inbox(7),
            wanted: 0,
        };
        reader.ask();
        let message = b"MSG topic 1 $JS.ACK.x 2\r\nAB\r\n";
        let mut values = Vec::new();
        let mut each = |value: &[u8]| values.push(value.to_vec());
        let taken = reader.take(message, Some(&mut each)).unwrap();
        assert_eq!((taken.bytes, taken.messages), (message.len(), 1));
        assert!(!taken.is_answered);
        assert_eq!(values, [b"AB"]);
        let over = b"HMSG x 1 32 32\r\nNATS/1.0 408 Request Timeout\r\n\r\n\r\n";
        let taken = reader.take(over, None).unwrap();
        assert!(taken.is_answered && taken.messages == 0);
    }
}
