//! Apache Kafka with its own protocol: record batches in and out, uncompressed, acknowledged by all
//! replicas (of which there is one).

mod batch;
mod wire;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use self::batch::{Record, batches, record_batch};
use self::wire::{Fields, Writer, frame};
use super::{Door, Each, FETCH_WAIT_MS, Front, PartitionReader, Reader, Store, Taken};
use crate::line::{Line, PATIENCE};

const PRODUCE: (i16, i16) = (0, 3);
const FETCH: (i16, i16) = (1, 4);
const LIST_OFFSETS: (i16, i16) = (2, 2);
const CREATE_TOPICS: (i16, i16) = (19, 2);
const DELETE_TOPICS: (i16, i16) = (20, 1);
/// How long the broker may work at a request, in milliseconds.
const TIMEOUT_MS: i32 = 30_000;
/// `acks=all`.
const ALL: i16 = -1;
const LATEST: i64 = -1;
const READ_COMMITTED: i8 = 1;
/// The default of Kafka's own consumer: about 10,000 messages of 100 bytes.
const FETCH_BYTES: i32 = 1 << 20;
/// Maximum messages of a batch that fills a topic.
const FILL_MESSAGES: usize = 1_000;
/// Time between two checks whether a new topic can be written to.
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) struct Kafka {
    pub(crate) address: SocketAddr,
    /// Whether its topics sync each batch to the disk (`flush.messages=1`).
    pub(crate) is_flushed: bool,
}

impl Kafka {
    /// Sends one request and returns its answer, without the correlation id.
    fn ask(line: &mut Line, request: &[u8]) -> Result<Vec<u8>> {
        line.send(request)?;
        loop {
            if let Some(whole) = extent(line.held())? {
                let answer = line.held()[8..whole].to_vec();
                line.take(whole);
                return Ok(answer);
            }
            line.more()?;
        }
    }

    fn produce_to(topic: &str, partition: u32, records: &[Record<'_>]) -> Vec<u8> {
        let mut body = Writer::default();
        body.null_text(); // no transaction
        body.i16(ALL);
        body.i32(TIMEOUT_MS);
        body.one_partition(topic, partition);
        body.bytes(&record_batch(records));
        frame(PRODUCE, &body)
    }
}

impl Door for Kafka {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn make(&self, topic: &str) -> Result<()> {
        self.make_partitioned(topic, 1)
    }

    fn remove(&self, topic: &str) -> Result<()> {
        let mut body = Writer::default();
        body.i32(1);
        body.text(topic);
        body.i32(TIMEOUT_MS);
        let answer = Self::ask(&mut self.open()?, &frame(DELETE_TOPICS, &body))?;
        let mut fields = Fields::new(&answer[4..]);
        fields.i32()?;
        fields.text()?;
        refused(fields.i16()?)
    }

    fn produce(&self, topic: &str, values: &[&str]) -> Vec<u8> {
        let records = values.iter().map(|value| Record { key: None, value });
        Self::produce_to(topic, 0, &records.collect::<Vec<_>>())
    }

    fn has_batches(&self) -> bool {
        true
    }

    fn front(&self, came: &[u8]) -> Result<Front> {
        let Some(whole) = extent(came)? else {
            return Ok(Front::Part);
        };
        let mut fields = Fields::new(&came[8..whole]);
        fields.i32()?;
        fields.text()?;
        fields.i32()?;
        fields.i32()?;
        refused(fields.i16()?)?;
        Ok(Front::Answer(whole))
    }

    fn reader(&self, topic: &str, _line: &mut Line) -> Result<Box<dyn Reader>> {
        Ok(self.reader_at(topic, 0, 0))
    }
}

impl Store for Kafka {
    fn make_partitioned(&self, topic: &str, partitions: u32) -> Result<()> {
        let mut body = Writer::default();
        body.i32(1);
        body.text(topic);
        body.i32(partitions as i32);
        body.i16(1); // one copy
        body.i32(0); // replicas where the broker likes
        body.i32(i32::from(self.is_flushed));
        if self.is_flushed {
            body.text("flush.messages");
            body.text("1");
        }
        body.i32(TIMEOUT_MS);
        body.i8(0); // not only validated
        let mut line = self.open()?;
        let answer = Self::ask(&mut line, &frame(CREATE_TOPICS, &body))?;
        let mut fields = Fields::new(&answer[4..]);
        fields.i32()?;
        fields.text()?;
        refused(fields.i16()?)?;
        let began = Instant::now();
        while let Err(error) = self.ends(&mut line, topic, partitions) {
            ensure!(began.elapsed() < PATIENCE, "{topic} was made: {error}");
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn ends(&self, line: &mut Line, topic: &str, partitions: u32) -> Result<Vec<u64>> {
        let mut body = Writer::default();
        body.i32(-1); // no replica
        body.i8(READ_COMMITTED);
        body.i32(1);
        body.text(topic);
        body.i32(partitions as i32);
        for partition in 0..partitions {
            body.i32(partition as i32);
            body.i64(LATEST);
        }
        let answer = Self::ask(line, &frame(LIST_OFFSETS, &body))?;
        let mut fields = Fields::new(&answer[4..]);
        fields.i32()?;
        fields.text()?;
        let mut ends = vec![0; partitions as usize];
        for _ in 0..fields.i32()? {
            let partition = fields.i32()? as usize;
            refused(fields.i16()?)?;
            fields.i64()?;
            let end = fields.i64()?;
            ensure!(partition < ends.len() && end >= 0, "an end of nothing");
            ends[partition] = end as u64;
        }
        Ok(ends)
    }

    fn reader_at(&self, topic: &str, partition: u32, from: u64) -> Box<dyn PartitionReader> {
        Box::new(Fetching {
            topic: topic.to_owned(),
            partition,
            from: from as i64,
        })
    }

    /// Keys are assigned to the partitions in turn, and stay there.
    fn fill(&self, topic: &str, partitions: u32, keys: usize, value: &str) -> Vec<(Vec<u8>, u64)> {
        let mut requests = Vec::new();
        for partition in 0..partitions {
            let keys = (partition as usize..keys).step_by(partitions as usize);
            let keys: Vec<String> = keys.map(|key| format!("key{key}")).collect();
            for keys in keys.chunks(FILL_MESSAGES) {
                let records = keys.iter().map(|key| Record {
                    key: Some(key),
                    value,
                });
                let records: Vec<Record<'_>> = records.collect();
                let request = Self::produce_to(topic, partition, &records);
                requests.push((request, records.len() as u64));
            }
        }
        requests
    }
}

struct Fetching {
    topic: String,
    partition: u32,
    from: i64,
}

impl Reader for Fetching {
    fn ask(&mut self) -> Vec<u8> {
        let mut body = Writer::default();
        body.i32(-1); // no replica
        body.i32(FETCH_WAIT_MS as i32);
        body.i32(1); // as soon as there is a byte
        body.i32(FETCH_BYTES);
        body.i8(READ_COMMITTED);
        body.one_partition(&self.topic, self.partition);
        body.i64(self.from);
        body.i32(FETCH_BYTES);
        frame(FETCH, &body)
    }

    fn take(&mut self, came: &[u8], mut each: Option<Each<'_>>) -> Result<Taken> {
        let Some(whole) = extent(came)? else {
            return Ok(Taken::default());
        };
        let mut fields = Fields::new(&came[8..whole]);
        fields.i32()?; // throttled for
        fields.i32()?;
        fields.text()?;
        fields.i32()?;
        fields.i32()?;
        refused(fields.i16()?)?;
        fields.i64()?; // high watermark
        fields.i64()?; // last stable offset
        let aborted = fields.i32()?;
        ensure!(aborted <= 0, "a transaction was aborted");
        let mut messages = 0;
        for batch in batches(fields.rest_of_bytes()?) {
            let batch = batch?;
            ensure!(batch.first >= self.from, "a batch from before was read");
            self.from = batch.next;
            if batch.is_control {
                continue;
            }
            messages += batch.count;
            if let Some(each) = &mut each {
                batch.values(each)?;
            }
        }
        Ok(Taken {
            bytes: whole,
            messages,
            is_answered: true,
        })
    }
}

impl PartitionReader for Fetching {
    fn position(&self) -> u64 {
        self.from as u64
    }
}

/// Bytes of the first answer, with its length and correlation id, once it has arrived completely.
fn extent(came: &[u8]) -> Result<Option<usize>> {
    let Some(length) = came.first_chunk() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes(*length);
    ensure!(length >= 8, "an answer of {length} bytes");
    let whole = length as usize + 4;
    Ok((came.len() >= whole).then_some(whole))
}

fn refused(code: i16) -> Result<()> {
    if code != 0 {
        bail!("Kafka refused with its error {code}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOOR: Kafka = Kafka {
        address: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1),
        is_flushed: false,
    };

    fn answer(body: &Writer) -> Vec<u8> {
        let mut whole = Writer::default();
        whole.i32(body.written().len() as i32 + 4);
        whole.i32(0);
        [whole.written(), body.written()].concat()
    }

    fn fetched(error: i16, batch: &[u8]) -> Vec<u8> {
        let mut body = Writer::default();
        body.i32(0);
        body.one_partition("t", 0);
        body.i16(error);
        body.i64(2);
        body.i64(2);
        body.i32(-1);
        body.bytes(batch);
        answer(&body)
    }

    #[test]
    fn what_is_produced_is_what_is_read() {
        let records = ["A", "BC"].map(|value| Record { key: None, value });
        let came = fetched(0, &record_batch(&records));
        let mut reader = DOOR.reader_at("t", 0, 0);
        let part = reader.take(&came[..came.len() - 1], None).unwrap();
        assert_eq!(part, Taken::default());
        let mut values = Vec::new();
        let mut each = |value: &[u8]| values.push(value.to_vec());
        let taken = reader.take(&came, Some(&mut each)).unwrap();
        assert_eq!((taken.bytes, taken.messages), (came.len(), 2));
        assert_eq!(values, [&b"A"[..], b"BC"]);
        let again = reader.take(&came, None);
        assert!(
            again.is_err(),
            "the same batch stands before where it reads on"
        );
    }

    #[test]
    fn a_refusal_is_an_error() {
        assert!(
            DOOR.reader_at("t", 0, 0)
                .take(&fetched(3, b""), None)
                .is_err()
        );
    }

    #[test]
    fn a_fill_holds_each_key_once() {
        let requests = DOOR.fill("t", 4, 10_000, "a");
        assert_eq!(requests.len(), 12);
        assert_eq!(requests.iter().map(|(_, count)| count).sum::<u64>(), 10_000);
    }
}
