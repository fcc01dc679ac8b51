//! Millrace over HTTP/1.1: JSON lines in, JSON out.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use serde_json::{Value, json};

use super::{
    Door, Each, FETCH_MESSAGES, FETCH_WAIT_MS, Front, PartitionReader, Reader, Store, Taken,
};
use crate::line::Line;

const HEAD_END: &[u8] = b"\r\n\r\n";
/// The bytes before a value in an answer; values here contain no quotes.
const VALUE: &[u8] = b"\"value\":\"";
/// The bytes before the next offset to read, which follows the messages.
const NEXT: &[u8] = b"\"next\":";
/// Maximum bytes of one fetch, the most that the host allows.
const FETCH_BYTES: u64 = 16 << 20;
/// Messages per request when filling a topic.
const FILL_MESSAGES: usize = 1_000;

pub(crate) struct Http {
    pub(crate) address: SocketAddr,
    /// The durability of its topics: `os` or `durable`.
    pub(crate) durability: &'static str,
}

impl Http {
    /// Sends one request and returns the body of its answer.
    pub(crate) fn ask(line: &mut Line, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        line.send(&request(method, path, "application/json", body))?;
        loop {
            if let Some((head, whole)) = extent(line.held())? {
                let answer = line.held()[head..whole].to_vec();
                line.take(whole);
                return Ok(answer);
            }
            line.more()?;
        }
    }
}

impl Door for Http {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn make(&self, topic: &str) -> Result<()> {
        self.make_partitioned(topic, 1)
    }

    fn remove(&self, topic: &str) -> Result<()> {
        let path = format!("/v1/topics/{topic}");
        Self::ask(&mut self.open()?, "DELETE", &path, "").map(drop)
    }

    fn produce(&self, topic: &str, values: &[&str]) -> Vec<u8> {
        let path = format!("/v1/topics/{topic}/messages");
        if let [value] = values {
            return request("POST", &path, "application/octet-stream", value);
        }
        let lines = values.iter().map(|value| json!({ "value": value }));
        produce_lines(&path, lines)
    }

    fn has_batches(&self) -> bool {
        true
    }

    fn front(&self, came: &[u8]) -> Result<Front> {
        Ok(extent(came)?.map_or(Front::Part, |(_, whole)| Front::Answer(whole)))
    }

    fn reader(&self, topic: &str, _line: &mut Line) -> Result<Box<dyn Reader>> {
        Ok(self.reader_at(topic, 0, 0))
    }
}

impl Store for Http {
    fn make_partitioned(&self, topic: &str, partitions: u32) -> Result<()> {
        let body =
            json!({ "name": topic, "partitions": partitions, "durability": self.durability });
        let body = body.to_string();
        Self::ask(&mut self.open()?, "POST", "/v1/topics", &body).map(drop)
    }

    fn ends(&self, line: &mut Line, topic: &str, partitions: u32) -> Result<Vec<u64>> {
        let path = format!("/v1/topics/{topic}");
        let answer: Value = serde_json::from_slice(&Self::ask(line, "GET", &path, "")?)?;
        let ends = answer["ends"].as_array().context("a topic without ends")?;
        let ends: Option<Vec<u64>> = ends.iter().map(|end| end["end"].as_u64()).collect();
        let ends = ends.context("an end that is no offset")?;
        ensure!(ends.len() == partitions as usize, "an end a partition");
        Ok(ends)
    }

    fn reader_at(&self, topic: &str, partition: u32, from: u64) -> Box<dyn PartitionReader> {
        Box::new(Fetching {
            path: format!("/v1/topics/{topic}/partitions/{partition}/messages"),
            from,
        })
    }

    /// The topic's partitioner chooses the partitions by key.
    fn fill(&self, topic: &str, _partitions: u32, keys: usize, value: &str) -> Vec<(Vec<u8>, u64)> {
        let path = format!("/v1/topics/{topic}/messages");
        let keys: Vec<String> = (0..keys).map(|key| format!("key{key}")).collect();
        let requests = keys.chunks(FILL_MESSAGES).map(|keys| {
            let lines = keys.iter().map(|key| json!({ "key": key, "value": value }));
            (produce_lines(&path, lines), keys.len() as u64)
        });
        requests.collect()
    }
}

struct Fetching {
    path: String,
    from: u64,
}

impl Reader for Fetching {
    fn ask(&mut self) -> Vec<u8> {
        let Self { path, from } = self;
        let path = format!(
            "{path}?from={from}&max={FETCH_MESSAGES}&max_bytes={FETCH_BYTES}&wait_ms={FETCH_WAIT_MS}"
        );
        request("GET", &path, "", "")
    }

    fn take(&mut self, came: &[u8], each: Option<Each<'_>>) -> Result<Taken> {
        let Some((head, whole)) = extent(came)? else {
            return Ok(Taken::default());
        };
        let body = &came[head..whole];
        let next = next(body).context("a fetch does not say where to go on")?;
        let messages = next
            .checked_sub(self.from)
            .context("a fetch that goes back")?;
        if let Some(each) = each {
            for at in memmem::find_iter(body, VALUE) {
                let value = &body[at + VALUE.len()..];
                let end = memchr::memchr(b'"', value).context("a value without end")?;
                each(&value[..end]);
            }
        }
        self.from = next;
        Ok(Taken {
            bytes: whole,
            messages,
            is_answered: true,
        })
    }
}

impl PartitionReader for Fetching {
    fn position(&self) -> u64 {
        self.from
    }
}

/// The next offset that the answer to a fetch names.
fn next(body: &[u8]) -> Option<u64> {
    let at = memmem::rfind(body, NEXT)? + NEXT.len();
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let digits = &body[at..at + digits.count()];
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn produce_lines(path: &str, lines: impl Iterator<Item = Value>) -> Vec<u8> {
    let mut body = String::new();
    for line in lines {
        body.push_str(&line.to_string());
        body.push('\n');
    }
    request("POST", path, "application/x-ndjson", &body)
}

fn request(method: &str, path: &str, content: &str, body: &str) -> Vec<u8> {
    let content = match body {
        "" => String::new(),
        body => format!(
            "content-type: {content}\r\ncontent-length: {}\r\n",
            body.len()
        ),
    };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{content}\r\n");
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Where the body of the first answer begins and ends, once it has arrived completely. An answer
/// that is not 2xx is an error.
fn extent(came: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = memmem::find(came, HEAD_END) else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&came[..end])?;
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.map_or(Ok(0), |(_, length)| length.parse())?;
    let body = end + HEAD_END.len();
    let whole = body + length;
    if came.len() < whole {
        return Ok(None);
    }
    if !head.starts_with("HTTP/1.1 2") {
        let status = head.lines().next().unwrap_or_default();
        let why = String::from_utf8_lossy(&came[body..whole]);
        bail!("Millrace refused: {status}: {why}");
    }
    Ok(Some((body, whole)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> Vec<u8> {
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
    }

    #[test]
    fn a_fetch_is_read_when_it_is_whole() {
        let mut reader = Fetching {
            path: "/x".into(),
            from: 7,
        };
        let came = answer(
            r#"{"messages":[{"offset":7,"value":"A"},{"offset":8,"value":"B"}],"next":9,"start":0,"end":9}"#,
        );
        let part = reader.take(&came[..came.len() - 1], None).unwrap();
        assert_eq!(part, Taken::default());
        let mut values = Vec::new();
        let mut each = |value: &[u8]| values.push(value.to_vec());
        let taken = reader.take(&came, Some(&mut each)).unwrap();
        assert_eq!((taken.bytes, taken.messages), (came.len(), 2));
        assert_eq!(values, [b"A", b"B"]);
        let asked = String::from_utf8(reader.ask()).unwrap();
        assert!(asked.starts_with("GET /x?from=9&"), "{asked}");
    }

    #[test]
    fn a_refusal_is_an_error() {
        let came = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
        assert!(extent(came).is_err());
    }
}
