//! Redis streams: each message is an entry with one field, appended by XADD and read by XREAD.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;

use super::{Door, Each, FETCH_MESSAGES, FETCH_WAIT_MS, Front, Reader, Taken};
use crate::line::Line;

const LINE_END: &[u8] = b"\r\n";
/// The one field of an entry.
const FIELD: &str = "v";

pub(crate) struct Redis {
    pub(crate) address: SocketAddr,
}

/// What the server sent, read from the front.
enum Said<'a> {
    Part,
    /// The head of an array with this many elements (negative for null), and its length in bytes.
    Array(i64, usize),
    Bytes(&'a [u8], usize),
    Other(usize),
}

impl Door for Redis {
    fn address(&self) -> SocketAddr {
        self.address
    }

    /// The first entry creates the stream; an old one must be removed.
    fn make(&self, topic: &str) -> Result<()> {
        self.remove(topic)
    }

    fn remove(&self, topic: &str) -> Result<()> {
        let mut line = self.open()?;
        line.send(&command(&["DEL", topic]))?;
        loop {
            match said(line.held())? {
                Said::Part => line.more()?,
                _ => return Ok(()),
            }
        }
    }

    fn produce(&self, topic: &str, values: &[&str]) -> Vec<u8> {
        let adds = values
            .iter()
            .map(|value| command(&["XADD", topic, "*", FIELD, value]));
        adds.collect::<Vec<_>>().concat()
    }

    fn has_batches(&self) -> bool {
        false
    }

    fn front(&self, came: &[u8]) -> Result<Front> {
        Ok(match said(came)? {
            Said::Part => Front::Part,
            Said::Bytes(_, whole) => Front::Answer(whole),
            Said::Array(..) | Said::Other(_) => bail!("an append is answered by an entry's id"),
        })
    }

    fn reader(&self, topic: &str, _line: &mut Line) -> Result<Box<dyn Reader>> {
        Ok(Box::new(Reading {
            topic: topic.to_owned(),
            last: b"0".to_vec(),
            missing: 0,
            strings: 0,
        }))
    }
}

/// An answer is an array with the stream's name and its entries, each an id and an array of field
/// and value: the first string is the name, followed by three strings for each entry.
struct Reading {
    topic: String,
    /// The id of the last entry read.
    last: Vec<u8>,
    /// Elements of the answer that have not arrived yet.
    missing: i64,
    /// Strings of the answer that have arrived.
    strings: usize,
}

impl Reader for Reading {
    fn ask(&mut self) -> Vec<u8> {
        (self.missing, self.strings) = (1, 0);
        let last = String::from_utf8_lossy(&self.last);
        let (count, wait) = (FETCH_MESSAGES.to_string(), FETCH_WAIT_MS.to_string());
        command(&[
            "XREAD",
            "COUNT",
            &count,
            "BLOCK",
            &wait,
            "STREAMS",
            &self.topic,
            &last,
        ])
    }

    fn take(&mut self, came: &[u8], mut each: Option<Each<'_>>) -> Result<Taken> {
        let mut taken = Taken::default();
        while self.missing > 0 {
            match said(&came[taken.bytes..])? {
                Said::Part => break,
                Said::Array(things, bytes) => {
                    self.missing += things.max(0);
                    taken.bytes += bytes;
                }
                Said::Other(bytes) => taken.bytes += bytes,
                Said::Bytes(string, bytes) => {
                    match self.strings.checked_sub(1).map(|string| string % 3) {
                        Some(0) => string.clone_into(&mut self.last),
                        Some(2) => {
                            taken.messages += 1;
                            if let Some(each) = &mut each {
                                each(string);
                            }
                        }
                        _ => {}
                    }
                    self.strings += 1;
                    taken.bytes += bytes;
                }
            }
            self.missing -= 1;
            taken.is_answered = self.missing == 0;
        }
        Ok(taken)
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    command.into_bytes()
}

/// The first element; of an array only its head.
fn said(came: &[u8]) -> Result<Said<'_>> {
    let Some(end) = memmem::find(came, LINE_END) else {
        return Ok(Said::Part);
    };
    let begins = end + LINE_END.len();
    let (kind, text) = (came[0], std::str::from_utf8(&came[1..end])?);
    let number = || text.parse::<i64>().context("a length that is no number");
    Ok(match kind {
        b'*' => Said::Array(number()?, begins),
        b'$' => {
            let Ok(length) = usize::try_from(number()?) else {
                return Ok(Said::Other(begins));
            };
            let whole = begins + length + LINE_END.len();
            if came.len() < whole {
                return Ok(Said::Part);
            }
            Said::Bytes(&came[begins..begins + length], whole)
        }
        b'-' => bail!("Redis refused: {text}"),
        kind => {
            ensure!(b"+:".contains(&kind), "an answer that begins with {kind}");
            Said::Other(begins)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Reading {
        Reading {
            topic: "t".into(),
            last: b"0".to_vec(),
            missing: 0,
            strings: 0,
        }
    }

    #[test]
    fn an_answer_is_read_however_it_is_cut() {
        let entry = |id: &str, value: &str| {
            format!("*2\r\n$3\r\n{id}\r\n*2\r\n$1\r\nv\r\n$2\r\n{value}\r\n")
        };
        let entries = entry("1-0", "AB") + &entry("2-0", "CD");
        let whole = format!("*1\r\n*2\r\n$1\r\nt\r\n*2\r\n{entries}");
        for cut in 0..whole.len() {
            let mut reader = reading();
            reader.ask();
            let mut values = Vec::new();
            let mut each = |value: &[u8]| values.push(value.to_vec());
            let first = reader
                .take(&whole.as_bytes()[..cut], Some(&mut each))
                .unwrap();
            assert!(!first.is_answered, "at {cut}");
            let rest = &whole.as_bytes()[first.bytes..];
            let second = reader.take(rest, Some(&mut each)).unwrap();
            assert!(second.is_answered);
            assert_eq!(first.messages + second.messages, 2);
            assert_eq!(values, [b"AB", b"CD"]);
            assert!(reader.ask().ends_with(b"$3\r\n2-0\r\n"));
        }
    }

    #[test]
    fn nothing_in_time_is_an_answer_and_a_refusal_an_error() {
        let mut reader = reading();
        reader.ask();
        let taken = reader.take(b"*-1\r\n", None).unwrap();
        assert!(taken.is_answered && taken.messages == 0);
        assert!(said(b"-ERR no\r\n").is_err());
    }
}
