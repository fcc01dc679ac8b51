//! Tests of producers that repeat unacknowledged batches, in any order that a network may cause,
//! across power cuts and killed processes: each message exists once, in order, at the offset that
//! the producer was told.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;
use millrace_engine::RequestMark;
use millrace_model::bounds::{PRODUCER_IDLE_MS, REQUEST_AGE_MS_MAX};
use millrace_model::{ManualClock, ProducerId};

use super::*;

const IN_FLIGHT_MAX: usize = 5;

/// A producer of one partition.
struct Producer {
    number: u32,
    id: ProducerId,
    partition: TopicPartition,
    next: u64,
    /// Sent and perhaps written: first message and number of messages.
    unacknowledged: VecDeque<(u64, u64)>,
    /// The acknowledged offset of each message.
    told: BTreeMap<u64, Offset>,
}

impl Producer {
    fn append(&self, first: u64, count: u64) -> Append {
        let mut builder = BatchBuilder::with_capacity(0).numbered(self.id, first as i32);
        for message in first..first + count {
            let padding = "p".repeat((message % 7 * 20) as usize);
            builder.push(&Message {
                value: Some(format!("{} {message} {padding}", self.number).into()),
                ..Message::default()
            });
        }
        Append {
            partition: self.partition,
            batch: builder.finish().unwrap(),
        }
    }

    /// Sends new batches and repeats old ones, in any order, until the power fails or it has made
    /// `calls` calls.
    async fn work(&mut self, engine: &LocalEngine, random: &mut Rng, calls: u32) {
        for _ in 0..calls {
            if self.unacknowledged.len() < IN_FLIGHT_MAX && random.u8(..4) > 0 {
                let count = random.u64(1..4);
                self.unacknowledged.push_back((self.next, count));
                self.next += count;
            }
            let Some(chosen) = random.choice(0..self.unacknowledged.len()) else {
                continue;
            };
            let (first, count) = self.unacknowledged[chosen];
            let sent = engine
                .commit(Transaction::produce(vec![self.append(first, count)]))
                .await;
            match sent {
                Ok(receipt) => self.note(first, count, receipt.base_offsets[0]),
                Err(CommitError::OutOfOrderSequence { .. } | CommitError::UnknownProducer(_)) => {
                    assert!(chosen > 0, "the oldest one is always next, or known");
                    continue;
                }
                Err(_) => return,
            }
            // The answer may get lost as well.
            if chosen == 0 && random.bool() {
                self.unacknowledged.pop_front();
            }
        }
    }

    fn note(&mut self, first: u64, count: u64, base: Offset) {
        for index in 0..count {
            let offset = base.plus(index);
            let before = self.told.insert(first + index, offset);
            assert!(before.is_none_or(|before| before == offset), "told twice");
        }
    }

    /// Checks that everything acknowledged exists, and that everything exists once and in order.
    fn check(&self, all: &[String]) {
        let mine = all.iter().enumerate().filter_map(|(offset, value)| {
            let (number, rest) = value.split_once(' ')?;
            let message: u64 = rest.split_once(' ')?.0.parse().ok()?;
            (number == self.number.to_string()).then_some((offset as u64, message))
        });
        let mut count = 0;
        for (offset, message) in mine {
            assert_eq!(message, count, "in order, none missing, none twice");
            let told = self.told.get(&message);
            assert!(told.is_none_or(|&told| told == Offset(offset)));
            count += 1;
        }
        let last = self.told.keys().next_back();
        assert!(
            last.is_none_or(|&last| last < count),
            "nothing told is lost"
        );
    }
}

/// Requests that are repeated under their key until they are answered.
struct Requester {
    partition: TopicPartition,
    next: u64,
    told: BTreeMap<u64, Offset>,
}

impl Requester {
    fn transaction(&self, number: u64) -> Transaction {
        let digest = |salt: u64| {
            let word = (number * 2 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (u128::from(word) << 64 | u128::from(number)).to_le_bytes()
        };
        Transaction {
            request: Some(RequestMark {
                topic: self.partition.topic,
                key: digest(0),
                fingerprint: digest(1),
                note: Bytes::from(number.to_string()),
            }),
            ..Transaction::produce(vec![append(self.partition, &format!("r {number} "))])
        }
    }

    async fn work(&mut self, engine: &LocalEngine, random: &mut Rng, calls: u32) {
        for _ in 0..calls {
            let number = random.u64(self.next.saturating_sub(3)..=self.next);
            let Ok(receipt) = engine.commit(self.transaction(number)).await else {
                return;
            };
            let offset = receipt.base_offsets[0];
            if receipt.repeated {
                assert_eq!(receipt.note, number.to_string());
            }
            let before = self.told.insert(number, offset);
            assert!(before.is_none_or(|before| before == offset));
            if number == self.next && random.bool() {
                self.next += 1;
            }
        }
    }

    fn check(&self, all: &[String]) {
        let mut found = BTreeMap::new();
        for (offset, value) in all.iter().enumerate() {
            if let Some(number) = value.strip_prefix("r ") {
                let number: u64 = number.trim().parse().unwrap();
                let before = found.insert(number, Offset(offset as u64));
                assert_eq!(before, None, "request {number} took effect twice");
            }
        }
        let is_there = |(number, offset): (&u64, &Offset)| found.get(number) == Some(offset);
        assert!(self.told.iter().all(is_there), "nothing told is lost");
    }
}

async fn producer(engine: &LocalEngine, number: u32, partition: TopicPartition) -> Producer {
    Producer {
        number,
        id: engine.init_producer(None).await.unwrap(),
        partition,
        next: 0,
        unacknowledged: VecDeque::new(),
        told: BTreeMap::new(),
    }
}

async fn run(seed: u64, durability: Durability, cuts_power: bool) {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let mut random = Rng::with_seed(seed);
    let mut engine = open_sim(&disk, dir.path()).await.unwrap();
    let topic = topic(&engine, "orders", durability).await;
    let mut a = producer(&engine, 0, at(&topic, 0)).await;
    let mut b = producer(&engine, 1, at(&topic, 0)).await;
    let mut c = producer(&engine, 2, at(&topic, 1)).await;
    let mut requester = Requester {
        partition: at(&topic, 1),
        next: 0,
        told: BTreeMap::new(),
    };
    for _ in 0..6 {
        if cuts_power {
            disk.cut_power_after(random.u64(20..300));
        }
        let mut seeds = [(); 4].map(|()| Rng::with_seed(random.u64(..)));
        let calls = random.u32(20..120);
        let [first, second, third, fourth] = &mut seeds;
        tokio::join!(
            a.work(&engine, first, calls),
            b.work(&engine, second, calls),
            c.work(&engine, third, calls),
            requester.work(&engine, fourth, calls),
        );
        if random.u8(..4) == 0 {
            engine.close().await;
        }
        drop(engine);
        if cuts_power {
            disk.cut_power();
            disk.restore_power(random.u64(..));
        }
        let opened = open_sim(&disk, dir.path()).await;
        engine = opened.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let first = values(&engine, at(&topic, 0)).await;
        let second = values(&engine, at(&topic, 1)).await;
        a.check(&first);
        b.check(&first);
        c.check(&second);
        requester.check(&second);
    }
    assert!(a.next + b.next + c.next + requester.next > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_power_cuts_every_message_stands_once_in_order_and_where_it_was_told() {
    for seed in 0..60 {
        run(seed, Durability::Durable, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_killed_processes_every_message_stands_once_in_order_and_where_it_was_told() {
    for seed in 0..30 {
        run(seed, Durability::Os, false).await;
    }
}

/// Relaxed topics are acknowledged without a sync; a repeat that requests more durability gets it,
/// also for what was written before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_is_as_durable_as_it_is_asked_to_be() {
    for seed in 0..20 {
        let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        let topic = topic(&engine, "orders", Durability::Os).await;
        let producer = producer(&engine, 0, at(&topic, 0)).await;
        let lax = Transaction::produce(vec![producer.append(0, 2)]);
        engine.commit(lax.clone()).await.unwrap();
        let strict = Transaction {
            durability: Some(Durability::Durable),
            ..lax
        };
        let again = engine.commit(strict.clone()).await.unwrap();
        assert!(again.repeated);
        disk.cut_power();
        drop(engine);
        disk.restore_power(seed);
        let engine = open_sim(&disk, dir.path()).await.unwrap();
        assert_eq!(values(&engine, at(&topic, 0)).await.len(), 2);
        assert!(engine.commit(strict).await.unwrap().repeated);
    }
}

/// By the given clock, not by the time of the replay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_is_forgotten_at_the_same_moment_after_a_replay() {
    for is_replayed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
        let open = async || {
            let clock = Arc::clone(&clock);
            LocalEngine::open(dir.path(), small(), clock).await.unwrap()
        };
        let mut engine = open().await;
        let orders = topic(&engine, "orders", Durability::Durable).await;
        let producer = producer(&engine, 0, at(&orders, 0)).await;
        let requester = Requester {
            partition: at(&orders, 1),
            next: 0,
            told: BTreeMap::new(),
        };
        let batch = Transaction::produce(vec![producer.append(0, 1)]);
        for (wait_ms, batch_is_known, request_is_known) in [
            (0, false, false),
            (REQUEST_AGE_MS_MAX, true, true),
            (1, true, false),
            (PRODUCER_IDLE_MS - REQUEST_AGE_MS_MAX - 1, true, false),
            (1, false, true),
        ] {
            clock.advance(Duration::from_millis(wait_ms));
            if is_replayed {
                drop(engine);
                engine = open().await;
            }
            let sent = engine.commit(batch.clone()).await.unwrap();
            assert_eq!(sent.repeated, batch_is_known, "after {wait_ms}");
            let asked = engine.commit(requester.transaction(1)).await.unwrap();
            assert_eq!(asked.repeated, request_is_known, "after {wait_ms}");
        }
    }
}
