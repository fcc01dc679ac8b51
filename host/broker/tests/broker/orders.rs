//! The three orders under random conditions: whatever the handler answers and whenever the host
//! ends, each message takes effect once, in the order that its processor's settings ask for.
//!
//! A host ends when its runtime is dropped in the middle of its work; the memory engine then holds
//! what was committed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use millrace_engine::MemoryEngine;
use millrace_model::processor::{Order, RetryPolicy};
use millrace_model::{ProcessorSpec, SystemClock};
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::rig::{Export, Modules, Rig, Say, per_message, spec, text, trap};

/// Attempts of a message; one that needs more becomes a dead letter.
const ATTEMPTS_MAX: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// The outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    Retry(Option<u64>),
    Trap,
    Reject,
}

/// A message: its key, and the outcomes of its attempts before it succeeds.
type Script = (Option<u8>, Vec<Turn>);

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        3 => Just(Turn::Retry(None)),
        3 => (0u64..12).prop_map(|ms| Turn::Retry(Some(ms))),
        2 => Just(Turn::Trap),
        1 => Just(Turn::Reject),
    ]
}

fn scripts() -> impl Strategy<Value = Vec<Script>> {
    let turns = prop_oneof![
        3 => Just(Vec::new()),
        2 => proptest::collection::vec(turn(), 1..6),
    ];
    proptest::collection::vec((proptest::option::weighted(0.9, 0u8..5), turns), 5..60)
}

/// Whether the message succeeds in the end.
fn passes(script: &Script) -> bool {
    let turns = &script.1;
    turns.len() < ATTEMPTS_MAX as usize && !turns.contains(&Turn::Reject)
}

/// The times at which each attempt of each message was made.
type Calls = Arc<Mutex<HashMap<(usize, u32), Vec<Instant>>>>;

struct World {
    engine: Arc<MemoryEngine>,
    modules: Arc<Modules>,
    scripts: Arc<Vec<Script>>,
    calls: Calls,
    /// Calls left until the host ends.
    fuse: Arc<AtomicU32>,
}

impl World {
    fn new(scripts: Vec<Script>) -> Self {
        Self {
            engine: MemoryEngine::new(Arc::new(SystemClock::new())),
            modules: Arc::default(),
            scripts: Arc::new(scripts),
            calls: Calls::default(),
            fuse: Arc::new(AtomicU32::new(u32::MAX)),
        }
    }

    fn handler(&self) -> Export {
        let (scripts, calls) = (Arc::clone(&self.scripts), Arc::clone(&self.calls));
        let fuse = Arc::clone(&self.fuse);
        Export::Processor(Arc::new(per_message(move |batch, message| {
            let number: usize = text(batch.value(message)).parse().unwrap();
            let attempt = batch.attempts[message];
            let made = (number, attempt);
            calls.lock().entry(made).or_default().push(Instant::now());
            fuse.fetch_sub(1, Ordering::SeqCst);
            match scripts[number].1.get(attempt as usize - 1) {
                None => Say::Pass,
                Some(Turn::Retry(after_ms)) => Say::Retry(*after_ms),
                Some(Turn::Trap) => trap(),
                Some(Turn::Reject) => Say::Reject("no"),
            }
        })))
    }

    async fn begin(&self, order: Order, batch_messages: u32) -> Rig {
        let rig = self.start().await;
        rig.topic("in", 1).await;
        rig.topic("out", 1).await;
        let module = rig.upload("m", self.handler()).await;
        let mut messages = Vec::new();
        for (number, (key, _)) in self.scripts.iter().enumerate() {
            let key = key.map_or_else(String::new, |key| format!("key-{key}"));
            messages.push((key, number.to_string()));
        }
        let messages: Vec<(&str, &str)> = { messages.iter() }
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        rig.produce(&messages).await;
        let base = spec(module);
        rig.deploy(ProcessorSpec {
            order,
            batch: millrace_model::processor::BatchPolicy {
                messages_max: batch_messages,
                ..base.batch
            },
            retry: RetryPolicy {
                attempts_max: ATTEMPTS_MAX,
                delay_first_ms: 1,
                delay_max_ms: 3,
            },
            breaker: millrace_model::processor::BreakerPolicy {
                enabled: false,
                ..base.breaker
            },
            dead_letters: millrace_model::processor::DeadLetterPolicy {
                max: 1_000_000,
                ..base.dead_letters
            },
            ..base
        })
        .await;
        rig
    }

    async fn start(&self) -> Rig {
        Rig::on(Arc::clone(&self.engine), Arc::clone(&self.modules)).await
    }

    /// Runs a host until the handler was called `calls` times, and ends it then, in the middle of
    /// its work.
    fn live_for(&self, calls: u32, begin: impl Future<Output = Rig>) {
        self.fuse.store(calls, Ordering::SeqCst);
        let host = Runtime::new().unwrap();
        host.block_on(async {
            let _rig = begin.await;
            let ended = async {
                while (1..u32::MAX / 2).contains(&self.fuse.load(Ordering::SeqCst)) {
                    tokio::task::yield_now().await;
                }
            };
            // Fewer calls than that may be left.
            let _ = tokio::time::timeout(Duration::from_millis(100), ended).await;
        });
        host.shutdown_background();
    }

    /// Starts again and, when everything is processed, returns the outputs and the messages that
    /// were given up, each in order.
    fn finish(&self) -> (Vec<usize>, Vec<usize>) {
        let host = Runtime::new().unwrap();
        host.block_on(async {
            let rig = self.start().await;
            let through = async { rig.settled().await };
            tokio::time::timeout(PATIENCE, through).await.unwrap();
            let numbers = |values: Vec<String>| values.iter().map(|v| v.parse().unwrap()).collect();
            let letters = rig.letters().await.into_iter();
            let letters = letters.map(|letter| text(letter.message.value.as_deref()));
            (numbers(rig.values("out").await), numbers(letters.collect()))
        })
    }
}

/// Checks that every message is in the output or given up, once, as its script demands.
fn check_once(scripts: &[Script], out: &[usize], dead: &[usize]) {
    let sorted = |numbers: &[usize]| {
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers
    };
    let (through, given_up): (Vec<usize>, Vec<usize>) =
        (0..scripts.len()).partition(|&number| passes(&scripts[number]));
    assert_eq!(sorted(out), through, "what came out");
    assert_eq!(sorted(dead), given_up, "what was given up");
}

/// Checks that the numbers of each group ascend.
fn check_order(numbers: &[usize], group: impl Fn(usize) -> Option<u8>) {
    let mut by_group: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
    for &number in numbers {
        if let Some(group) = group(number) {
            by_group.entry(group).or_default().push(number);
        }
    }
    for (group, numbers) in by_group {
        assert!(numbers.is_sorted(), "of {group}: {numbers:?}");
    }
}

/// Checks that each attempt came only after the delay that the previous one had asked for.
fn check_delays(world: &World) {
    let calls = world.calls.lock();
    for (&(number, attempt), times) in calls.iter() {
        let asked = world.scripts[number].1.get(attempt as usize - 1);
        let Some(Turn::Retry(Some(after_ms))) = asked else {
            continue;
        };
        // If the end of the host took an answer, the attempt was repeated: take the first that may
        // have counted.
        let (Some(asked_at), Some(next)) = (times.first(), calls.get(&(number, attempt + 1)))
        else {
            continue;
        };
        let waited = next[0].duration_since(*asked_at);
        // The wall clock counts whole milliseconds.
        let least = Duration::from_millis(after_ms.saturating_sub(1));
        assert!(waited >= least, "{number}: {waited:?} of {after_ms} ms");
    }
}

fn run(order: Order, scripts: Vec<Script>, batch: u32, ends: &[u32]) -> (Vec<usize>, Vec<usize>) {
    let world = World::new(scripts);
    let mut begin = Some(world.begin(order, batch));
    for &calls in ends {
        match begin.take() {
            Some(begin) => world.live_for(calls, begin),
            None => world.live_for(calls, world.start()),
        }
    }
    if let Some(begin) = begin {
        world.live_for(1, begin);
    }
    world.fuse.store(u32::MAX, Ordering::SeqCst);
    let (out, dead) = world.finish();
    check_once(&world.scripts, &out, &dead);
    check_delays(&world);
    (out, dead)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn by_key_each_message_takes_effect_once_and_those_of_a_key_in_order(
        scripts in scripts(),
        batch in 1u32..40,
        ends in proptest::collection::vec(1u32..60, 0..4),
    ) {
        let keys: Vec<Option<u8>> = scripts.iter().map(|script| script.0).collect();
        let (out, dead) = run(Order::Key, scripts, batch, &ends);
        check_order(&out, |number| keys[number]);
        check_order(&dead, |number| keys[number]);
    }

    #[test]
    fn by_partition_each_message_takes_effect_once_and_all_in_order(
        scripts in scripts(),
        batch in 1u32..40,
        ends in proptest::collection::vec(1u32..60, 0..4),
    ) {
        let (out, dead) = run(Order::Partition, scripts, batch, &ends);
        check_order(&out, |_| Some(0));
        check_order(&dead, |_| Some(0));
    }

    #[test]
    fn without_an_order_each_message_takes_effect_once(
        scripts in scripts(),
        batch in 1u32..40,
        ends in proptest::collection::vec(1u32..60, 0..4),
    ) {
        run(Order::None, scripts, batch, &ends);
    }
}
