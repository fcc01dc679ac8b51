//! Promises of an engine that compacts: the latest message of each key stays where it was, and what it superseded goes. The engine looks often
//! whether something is to be compacted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_model::{
    BatchBuilder, Clock as _, Compression, Durability, Message, Offset, PartitionId, RecordBatch,
    SystemClock, Timestamp, Topic, TopicName, TopicPartition, TopicSettings, TopicSpec,
};

use crate::contract::{Append, Engine, Transaction};

/// How long tombstones stay.
const TOMBSTONE_MS: u64 = 200;

/// Keys and values by offset.
pub type Read = BTreeMap<u64, (Option<String>, Option<String>)>;

/// An engine with a compacted topic.
pub struct Rig {
    engine: Arc<dyn Engine>,
    /// The topic, with one partition.
    pub topic: Topic,
    /// The partition.
    pub at: TopicPartition,
}

impl Rig {
    /// Makes the topic.
    pub async fn new(engine: Arc<dyn Engine>) -> Self {
        let settings = TopicSettings {
            compact: true,
            tombstone_ms: TOMBSTONE_MS,
            ..TopicSettings::default()
        };
        let spec = TopicSpec {
            name: TopicName::parse("orders").expect("a name"),
            partitions: 1,
            durability: Durability::Os,
            partitioner: None,
            owner: None,
            created_at: Timestamp(1),
            settings,
        };
        let topic = engine.create_topic(spec, Vec::new()).await;
        let topic = topic.expect("created");
        let at = topic.partition(PartitionId(0)).expect("it has one");
        Self { engine, topic, at }
    }

    /// In one transaction; returns their offsets.
    pub async fn commit(&self, batches: Vec<RecordBatch>) -> Vec<Offset> {
        let appends = batches.into_iter().map(|batch| Append {
            partition: self.at,
            batch,
        });
        let committed = self.engine.commit(Transaction::produce(appends.collect()));
        committed.await.expect("committed").base_offsets
    }

    /// One message.
    pub async fn put(&self, key: &str, value: Option<&str>) {
        self.commit(vec![batch(&[(Some(key), value)])]).await;
    }

    /// All from an offset on, with reads as small as can be; each must find something.
    pub async fn read_from(&self, from: u64) -> Read {
        self.read_by(from, 1).await
    }

    /// All as of one moment.
    async fn read_at_once(&self) -> Read {
        self.read_by(0, 1 << 20).await
    }

    async fn read_by(&self, from: u64, bytes_max: usize) -> Read {
        let end = self.engine.ends(self.at).expect("it exists").end;
        let (mut next, mut read) = (Offset(from), Read::new());
        while next < end {
            let batches = self.engine.read(self.at, next, bytes_max).await;
            let batches = batches.expect("readable");
            assert!(!batches.is_empty(), "nothing at {next}, before {end}");
            for batch in batches {
                let seen = next;
                next = batch.end_offset();
                if batch.is_control() {
                    continue;
                }
                let plain = batch.inflated().expect("its codec is known");
                for view in plain.records().expect("records") {
                    let view = view.expect("a record");
                    let message = view.to_message(plain.bytes()).expect("a message");
                    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).expect("text");
                    if view.offset >= seen {
                        let read_now = (message.key.map(text), message.value.map(text));
                        read.insert(view.offset.0, read_now);
                    }
                }
            }
        }
        read
    }

    /// Waits until this is what is left.
    pub async fn comes_to(&self, expected: &Read) {
        let reached = async {
            while self.read_from(0).await != *expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
        if reached.is_err() {
            assert_eq!(self.read_from(0).await, *expected);
        }
    }
}

/// A batch of these keys and values.
pub fn batch(messages: &[(Option<&str>, Option<&str>)]) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(64);
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    for (key, value) in messages {
        builder.push(&Message {
            key: key.map(bytes),
            value: value.map(bytes),
            headers: Vec::new(),
            timestamp: Timestamp(1_700_000_000_000),
        });
    }
    builder.finish().expect("messages")
}

/// These messages, at these offsets.
pub fn expected(messages: &[(u64, &str, &str)]) -> Read {
    let owned = |(offset, key, value): &(u64, &str, &str)| {
        (
            *offset,
            (Some((*key).to_owned()), Some((*value).to_owned())),
        )
    };
    messages.iter().map(owned).collect()
}

/// From wherever it is read, and counted as what it is.
pub async fn the_latest_message_of_each_key_stays_where_it_was(engine: Arc<dyn Engine>) {
    let rig = Rig::new(engine).await;
    // Several batches in one row, several messages in one batch, and rows of one message.
    let first = [
        (Some("a"), Some("a0")),
        (Some("b"), Some("b0")),
        (Some("a"), Some("a1")),
    ];
    rig.commit(vec![batch(&first), batch(&first[..1]), batch(&first[1..2])])
        .await;
    for value in ["c0", "c1", "c2"] {
        rig.put("c", Some(value)).await;
    }
    rig.put("a", Some("a9")).await;
    let left = expected(&[(4, "b", "b0"), (7, "c", "c2"), (8, "a", "a9")]);
    rig.comes_to(&left).await;
    let end = rig.engine.ends(rig.at).expect("it exists").end;
    assert_eq!(end, Offset(9));
    for from in 0..9 {
        let after = left.range(from..).map(|(at, it)| (*at, it.clone()));
        assert_eq!(rig.read_from(from).await, after.collect::<Read>(), "{from}");
        for to in from..=10 {
            let count = rig.engine.count(rig.at, Offset(from), Offset(to)).await;
            let within = left.range(from..to).count() as u64;
            assert_eq!(count.expect("counted"), within, "{from}..{to}");
        }
    }
    // What comes later goes on behind it.
    rig.put("b", Some("b1")).await;
    let left = expected(&[(7, "c", "c2"), (8, "a", "a9"), (9, "b", "b1")]);
    rig.comes_to(&left).await;
}

/// As of any moment. A reader within what has gone is led to the end.
pub async fn a_tombstone_goes_when_it_is_old_and_its_key_does_not_come_back(
    engine: Arc<dyn Engine>,
) {
    let rig = Rig::new(engine).await;
    rig.put("a", Some("a0")).await;
    rig.put("b", Some("b0")).await;
    rig.put("a", Some("a1")).await;
    rig.put("b", None).await;
    rig.put("a", None).await;
    let clock = SystemClock::new();
    let began = clock.monotonic();
    let elapsed = || clock.monotonic().saturating_sub(began);
    // Whoever sees no tombstone any more sees no older value either, wherever the end is.
    loop {
        let read = rig.read_at_once().await;
        if read.is_empty() {
            break;
        }
        let has = |offset: u64| read.contains_key(&offset);
        assert!(!has(1) || has(3), "b is back: {read:?}");
        assert!(!(has(0) || has(2)) || has(4), "a is back: {read:?}");
        assert!(elapsed() < Duration::from_secs(60), "{read:?}");
    }
    assert!(elapsed() >= Duration::from_millis(TOMBSTONE_MS));
    // A reader anywhere before the end gets a placeholder that leads it there.
    for from in 0..5 {
        assert!(rig.read_from(from).await.is_empty());
    }
    rig.put("b", Some("b2")).await;
    rig.comes_to(&expected(&[(5, "b", "b2")])).await;
}

/// Of random batches, compressed ones too; messages without a key stay.
pub async fn whatever_is_written_meanwhile_the_end_is_the_latest_of_each_key(
    engine: Arc<dyn Engine>,
) {
    let rig = Rig::new(engine).await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut all = Read::new();
    for step in 0..120 {
        let mut batches = Vec::new();
        for _ in 0..random.usize(1..4) {
            let messages: Vec<_> = (0..random.usize(1..6))
                .map(|number| {
                    let key = random.usize(0..8);
                    let key = (key > 0).then(|| format!("key {key}"));
                    let is_tombstone = key.is_some() && random.usize(0..4) == 0;
                    let value = (!is_tombstone).then(|| format!("{step} {number}"));
                    (key, value)
                })
                .collect();
            let borrowed: Vec<_> = messages
                .iter()
                .map(|(key, value)| (key.as_deref(), value.as_deref()))
                .collect();
            let codec = match random.bool() {
                true => Compression::Lz4,
                false => Compression::None,
            };
            batches.push((batch(&borrowed).deflated(codec), messages));
        }
        let (batches, messages): (Vec<_>, Vec<_>) = batches.into_iter().unzip();
        let bases = rig.commit(batches).await;
        for (base, messages) in bases.iter().zip(messages) {
            all.extend((base.0..).zip(messages));
        }
        if step % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(random.u64(0..60))).await;
            let read = rig.read_from(0).await;
            assert!(
                read.iter().all(|(at, it)| all.get(at) == Some(it)),
                "seed {seed}"
            );
            for (at, it) in latest(&all) {
                let is_there = read.get(&at) == Some(&it);
                assert!(is_there || it.1.is_none(), "seed {seed}: {at} is lost");
            }
        }
    }
    let left = latest(&all).filter(|(_, (_, value))| value.is_some());
    rig.comes_to(&left.collect()).await;
}

/// The latest message of each key, and those without a key.
fn latest(all: &Read) -> impl Iterator<Item = (u64, (Option<String>, Option<String>))> {
    let mut newest = BTreeMap::new();
    for (at, (key, _)) in all {
        newest.insert(key.clone(), *at);
    }
    let is_latest = move |at: u64, key: &Option<String>| key.is_none() || newest[key] == at;
    let kept = all.iter().filter(move |(at, it)| is_latest(**at, &it.0));
    kept.map(|(at, it)| (*at, it.clone()))
}
