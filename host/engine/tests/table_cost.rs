//! Tables take as much memory as a host's bounds count for them, whether their entries are many and
//! small or few and large. This test has its own process, so that no other test allocates memory
//! meanwhile.

use std::sync::Arc;

use millrace_engine::state::{NEVER, StateChange, StateValue, StateWrite, StateWrites};
use millrace_engine::{Engine, MemoryEngine, Transaction};
use millrace_model::{
    Durability, GroupName, SystemClock, Timestamp, TopicName, TopicPartition, TopicSpec,
};

/// Memory that the allocator and the runtime take besides.
const SLACK_BYTES: usize = 12 << 20;

fn own_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.expect("a line").trim().trim_end_matches(" kB").trim();
    kib.parse::<usize>().expect("a number") * 1024
}

async fn filled(
    engine: &dyn Engine,
    partition: TopicPartition,
    group: &GroupName,
    (entries, bytes, ends): (usize, usize, bool),
) {
    let at_once = (4 << 20) / (bytes + 100);
    for first in (0..entries).step_by(at_once) {
        let change = |number: usize| StateChange {
            key: format!("key-{number:016}").as_bytes().into(),
            value: Some(StateValue::new(&vec![7; bytes])),
            ends_at: if ends {
                Timestamp(u64::MAX - number as u64 - 1)
            } else {
                NEVER
            },
        };
        let changes = (first..entries.min(first + at_once)).map(change).collect();
        let write = StateWrite {
            group: group.clone(),
            partition,
            lease: None,
            writes: Arc::new(StateWrites {
                resets: false,
                changes,
                adds: None,
            }),
        };
        let transaction = Transaction {
            state: vec![write],
            ..Transaction::default()
        };
        engine.commit(transaction).await.expect("there is room");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_table_takes_what_is_counted_for_it() {
    let engine = MemoryEngine::new(Arc::new(SystemClock::new()));
    let spec = TopicSpec {
        name: TopicName::parse("t").expect("a name"),
        partitions: 1,
        durability: Durability::None,
        partitioner: None,
        owner: None,
        created_at: Timestamp(0),
        settings: Default::default(),
    };
    let topic = engine.create_topic(spec, Vec::new()).await.expect("made");
    let partition = topic.partitions().next().expect("one");
    // Just after a table has doubled its buckets, half of them are empty.
    for case in [
        (230_000, 8, false),
        (230_000, 100, false),
        (230_000, 8, true),
        (450_000, 20, false),
        (1_000, 100_000, false),
    ] {
        let before = own_bytes();
        let group = GroupName::stored(&format!("{case:?}"));
        filled(&*engine, partition, &group, case).await;
        let took = own_bytes().saturating_sub(before);
        let table = engine.state(&group, partition).await.expect("there");
        let counted = table.size().cost();
        println!(
            "{case:?}: counted {counted}, took {took}: {} a key",
            took / case.0
        );
        assert!(
            took <= counted + SLACK_BYTES,
            "{case:?}: {took} of {counted}"
        );
    }
}
