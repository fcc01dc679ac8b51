//! The load, which is the same for every broker. Requests are made before the clock starts, and
//! answers are parsed only as far as needed to recognize them. A load is one thread, however many
//! connections it has.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::doors::{Door, Front, Reader};
use crate::line::{Inbox, Line, PATIENCE};
use crate::machine::{Meter, Spent};

/// Bytes of a message's value.
pub(crate) const VALUE_BYTES: usize = 100;
/// Bytes at the front of a value that hold the time of sending in hexadecimal digits.
const STAMP_BYTES: usize = 16;
/// Number of producers that take turns in sending at a rate.
const LANES: u32 = 8;
/// The first `1 / COLD` of a run at a rate does not count, since everything is cold.
const COLD: usize = 10;

/// The requests that are sent repeatedly.
pub(crate) struct Load<'a> {
    pub(crate) door: &'a dyn Door,
    pub(crate) connections: usize,
    /// Maximum number of unanswered requests of a connection.
    pub(crate) window: usize,
    pub(crate) request: Vec<u8>,
}

/// Answered requests or read messages, and what they took.
pub(crate) struct Done {
    pub(crate) count: u64,
    pub(crate) spent: Spent,
}

/// A value with letters of both cases and without quotes.
pub(crate) fn value() -> String {
    let text =
        "All that is solid melts into the stream, and what was said once is never said again. ";
    text.chars().cycle().take(VALUE_BYTES).collect()
}

impl Load<'_> {
    /// Sends for this long, and then waits for the remaining answers.
    pub(crate) fn run(&self, servers: &[u32], time: Duration) -> Result<Done> {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_io().build()?;
        let opened = (0..self.connections).map(|_| {
            let line = self.door.open()?;
            let requests = self.request.repeat(self.window);
            let requests = self.door.addressed(&line, requests);
            anyhow::Ok((line.into_stream()?, requests))
        });
        let opened: Vec<(TcpStream, Vec<u8>)> = opened.collect::<Result<_>>()?;
        let meter = Meter::start(servers)?;
        let until = Instant::now() + time;
        let connections = opened
            .into_iter()
            .map(|(stream, requests)| self.one(stream, requests, until));
        let answered = runtime.block_on(try_join_all(connections))?;
        Ok(Done {
            count: answered.iter().sum(),
            spent: meter.end()?,
        })
    }

    async fn one(&self, stream: TcpStream, requests: Vec<u8>, until: Instant) -> Result<u64> {
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::TcpStream::from_std(stream)?;
        let mut inbox = Inbox::new();
        let (mut answered, mut unanswered) = (0, 0);
        loop {
            let room = self.window - unanswered;
            if room > 0 && Instant::now() < until {
                stream
                    .write_all(&requests[..room * self.request.len()])
                    .await?;
                unanswered += room;
            }
            if unanswered == 0 {
                return Ok(answered);
            }
            let came = stream.read(inbox.space()?).await?;
            inbox.came(came)?;
            let answers = answers(self.door, inbox.held())?;
            inbox.take(answers.bytes);
            answered += answers.count as u64;
            unanswered = unanswered
                .checked_sub(answers.count)
                .context("an answer to nothing")?;
        }
    }
}

struct Answers {
    bytes: usize,
    count: usize,
}

fn answers(door: &dyn Door, came: &[u8]) -> Result<Answers> {
    let mut all = Answers { bytes: 0, count: 0 };
    loop {
        match door.front(&came[all.bytes..])? {
            Front::Part => return Ok(all),
            Front::Aside(bytes) => all.bytes += bytes,
            Front::Answer(bytes) => {
                all.bytes += bytes;
                all.count += 1;
            }
        }
    }
}

/// Sends one message after the other; returns the microseconds that each took.
pub(crate) fn one_at_a_time(door: &dyn Door, request: Vec<u8>, time: Duration) -> Result<Vec<f64>> {
    let mut line = door.open()?;
    let request = door.addressed(&line, request);
    let mut times = Vec::new();
    let until = Instant::now() + time;
    while Instant::now() < until {
        let began = Instant::now();
        line.send(&request)?;
        wait_for_answers(door, &mut line, 1)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

pub(crate) fn wait_for_answers(door: &dyn Door, line: &mut Line, mut count: usize) -> Result<()> {
    while count > 0 {
        line.more()?;
        let answers = answers(door, line.held())?;
        line.take(answers.bytes);
        count = count
            .checked_sub(answers.count)
            .context("an answer to nothing")?;
    }
    Ok(())
}

/// Reads a topic with this many messages from beginning to end, again and again, for this long.
pub(crate) fn consume(
    door: &dyn Door,
    topic: &str,
    servers: &[u32],
    count: u64,
    time: Duration,
) -> Result<Done> {
    let meter = Meter::start(servers)?;
    let until = Instant::now() + time;
    let mut read = 0;
    while Instant::now() < until {
        read += consume_once(door, topic, count, until)?;
    }
    Ok(Done {
        count: read,
        spent: meter.end()?,
    })
}

fn consume_once(door: &dyn Door, topic: &str, count: u64, until: Instant) -> Result<u64> {
    let mut line = door.open()?;
    let mut reader = door.reader(topic, &mut line)?;
    let mut read = 0;
    line.send(&reader.ask())?;
    while read < count && Instant::now() < until {
        line.more()?;
        loop {
            let taken = reader.take(line.held(), None)?;
            line.take(taken.bytes);
            read += taken.messages;
            if taken.is_answered && read < count {
                line.send(&reader.ask())?;
            } else if taken.bytes == 0 || taken.is_answered {
                break;
            }
        }
    }
    Ok(read)
}

/// Sends single messages at a rate and reads the outputs; returns the microseconds from before the
/// sending to the reading, in the order of reading. If a producer is late because its last message
/// was not answered in time, the time counts from when it should have sent.
pub(crate) fn end_to_end(
    door: &dyn Door,
    topic: &str,
    line: &mut Line,
    reader: &mut dyn Reader,
    per_second: u32,
    time: Duration,
) -> Result<Vec<f64>> {
    let count = (f64::from(per_second) * time.as_secs_f64()) as usize;
    let began = Instant::now() + Duration::from_millis(200);
    let every = Duration::from_secs(1) / per_second;
    thread::scope(|scope| {
        let lane = |lane: u32| {
            scope.spawn(move || {
                let mut line = door.open()?;
                for number in (lane..count as u32).step_by(LANES as usize) {
                    let due = began + every * number;
                    let sent = match due.checked_duration_since(Instant::now()) {
                        Some(early) => {
                            thread::sleep(early);
                            Instant::now()
                        }
                        None => due,
                    };
                    let stamped = stamped(sent.duration_since(began));
                    let request = door.produce(topic, &[&stamped]);
                    line.send(&door.addressed(&line, request))?;
                    wait_for_answers(door, &mut line, 1)?;
                }
                anyhow::Ok(())
            })
        };
        let lanes: Vec<_> = (0..LANES).map(lane).collect();
        let until = began + time + PATIENCE;
        let mut times = Vec::with_capacity(count);
        line.send(&reader.ask())?;
        while times.len() < count {
            ensure!(
                Instant::now() < until,
                "{} of {count} messages came out",
                times.len()
            );
            line.more()?;
            let now = began.elapsed();
            let mut bad = false;
            let mut each = |value: &[u8]| match stamp(value) {
                Some(sent) => times.push(now.saturating_sub(sent).as_secs_f64() * 1e6),
                None => bad = true,
            };
            let taken = reader.take(line.held(), Some(&mut each))?;
            ensure!(!bad, "a message that was not sent came out");
            line.take(taken.bytes);
            if taken.is_answered && times.len() < count {
                line.send(&reader.ask())?;
            }
        }
        for lane in lanes {
            lane.join().expect("a producer does not panic")?;
        }
        Ok(times.split_off(count / COLD))
    })
}

fn stamped(at: Duration) -> String {
    let mut value = format!("{:0STAMP_BYTES$X}", at.as_nanos());
    value.push_str(&crate::load::value()[STAMP_BYTES..]);
    value
}

fn stamp(value: &[u8]) -> Option<Duration> {
    let digits = std::str::from_utf8(value.get(..STAMP_BYTES)?).ok()?;
    let nanos = u64::from_str_radix(digits, 16).ok()?;
    Some(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_upper_case() {
        let at = Duration::from_nanos(0xABCD_EF01);
        let value = stamped(at).to_ascii_uppercase();
        assert_eq!(value.len(), VALUE_BYTES);
        assert_eq!(stamp(value.as_bytes()), Some(at));
        assert_eq!(stamp(b"short"), None);
    }
}
