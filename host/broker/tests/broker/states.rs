//! State seen and changed from outside, and what happens to it when its processor changes or is
//! deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use millrace_broker::handler::BatchHandler;
use millrace_broker::state::{NEVER, StateChange, StateQuery, StateValue, StateWrites};
use millrace_broker::{CallError, StateAccessError, StatePlace};
use millrace_engine::state::{KeyColumns, StateAttempt, StateSize, WriteColumns};
use millrace_engine::{HostBounds, MemoryEngine};
use millrace_model::bounds::REVISIONS_KEPT_MAX;
use millrace_model::{Answer, ColumnBatch, PartitionId, SystemClock};

use crate::rig::{Rig, Say, per_message, processor, spec, topic};

/// Adds 1 to the key of each message, and then answers as the inner handler does.
pub(crate) struct Counting<H>(H);

pub(crate) fn counting<F>(decide: F) -> Counting<impl BatchHandler>
where
    F: Fn(&ColumnBatch, usize) -> Say + Send + Sync + 'static,
{
    Counting(per_message(decide))
}

#[async_trait]
impl<H: BatchHandler> BatchHandler for Counting<H> {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        self.0.process(batch).await
    }

    fn uses_state(&self) -> bool {
        true
    }

    async fn process_with_state(
        &self,
        batch: &Arc<ColumnBatch>,
        mut state: Box<StateAttempt>,
    ) -> Result<(Answer, Box<StateAttempt>), CallError> {
        for message in 0..batch.len() {
            let key = batch.key(message).unwrap_or_default();
            let keys = KeyColumns {
                data: key,
                spans: &[0, key.len() as u32],
            };
            let how = WriteColumns {
                ttl_ms: &[],
                messages: &[message as u32],
            };
            let added = state.add(&keys, &[], &how);
            added.map_err(|error| CallError::BadAnswer(error.to_string()))?;
        }
        Ok((self.0.process(batch).await?, state))
    }
}

pub(crate) fn place() -> StatePlace {
    StatePlace {
        processor: processor("p"),
        topic: None,
        partition: PartitionId(0),
    }
}

fn numbered(key: usize, value: Option<i64>) -> StateChange {
    change(&format!("{key:08}"), value)
}

pub(crate) fn change(key: &str, value: Option<i64>) -> StateChange {
    StateChange {
        key: key.as_bytes().into(),
        value: value.map(StateValue::of_number),
        ends_at: NEVER,
    }
}

pub(crate) async fn write(rig: &Rig, changes: Vec<StateChange>) -> Result<(), StateAccessError> {
    let writes = StateWrites {
        resets: false,
        changes,
        adds: None,
    };
    rig.session.processors().write_state(&place(), writes).await
}

/// The number of a key.
pub(crate) async fn number(rig: &Rig, place: &StatePlace, key: &str) -> Option<i64> {
    let query = StateQuery {
        prefix: key.as_bytes().to_vec(),
        entries_max: 1,
        ..StateQuery::default()
    };
    let page = rig
        .session
        .processors()
        .state(place, query)
        .await
        .expect("shown");
    page.entries.first()?.value.as_number()
}

async fn entries(rig: &Rig) -> usize {
    let shown = rig
        .session
        .processors()
        .state(&place(), StateQuery::default())
        .await;
    shown.expect("shown").size.entries
}

#[tokio::test]
async fn at_a_full_table_keys_can_be_changed_and_removed() {
    let entries_max = 100;
    let bounds = HostBounds {
        table: StateSize {
            entries: entries_max,
            bytes: 1 << 20,
        },
        ..HostBounds::default()
    };
    let engine = MemoryEngine::bounded(Arc::new(SystemClock::new()), bounds);
    let rig = Rig::on(engine, Arc::default()).await;
    rig.topic("in", 1).await;
    rig.topic("out", 1).await;
    let module = rig.upload_handler("m", per_message(|_, _| Say::Ack)).await;
    rig.deploy(spec(module)).await;
    let all = (0..entries_max).map(|key| numbered(key, Some(1)));
    let filled = write(&rig, all.collect()).await;
    filled.expect("there is room");
    let refused = write(&rig, vec![numbered(entries_max, Some(1))]).await;
    assert!(
        matches!(refused, Err(StateAccessError::Bound(_))),
        "{refused:?}"
    );
    let changed = write(&rig, vec![numbered(0, Some(2)), numbered(1, None)]).await;
    changed.expect("what is there may change, and go");
    assert_eq!(entries(&rig).await, entries_max - 1);
    let written = write(&rig, vec![numbered(entries_max, Some(1))]).await;
    written.expect("there is room again");
}

#[tokio::test]
async fn state_of_a_deleted_processor_can_be_seen_and_emptied() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Ack).await;
    write(&rig, vec![change("a", Some(1))])
        .await
        .expect("written");
    rig.session
        .processors()
        .delete_processor(&processor("p"))
        .await
        .unwrap();
    assert_eq!(number(&rig, &place(), "a").await, Some(1));
    let reset = StateWrites {
        resets: true,
        changes: Vec::new(),
        adds: None,
    };
    let emptied = rig.session.processors().write_state(&place(), reset).await;
    emptied.expect("nobody else would do it");
    let gone = rig
        .session
        .processors()
        .state(&place(), StateQuery::default())
        .await;
    assert!(
        matches!(gone, Err(StateAccessError::Unknown(_))),
        "{gone:?}"
    );
}

#[tokio::test]
async fn a_processor_may_be_deleted_with_its_state() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Ack).await;
    write(&rig, vec![change("a", Some(1))])
        .await
        .expect("written");
    let name = processor("p");
    let deleted = rig
        .session
        .processors()
        .delete_processor_and_state(&name)
        .await;
    deleted.expect("deleted");
    let gone = rig
        .session
        .processors()
        .state(&place(), StateQuery::default())
        .await;
    assert!(
        matches!(gone, Err(StateAccessError::Unknown(_))),
        "{gone:?}"
    );
    assert!(rig.session.processors().processor(&name).await.is_none());
}

#[tokio::test]
async fn a_reset_empties_state_of_topics_that_no_kept_revision_reads() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Ack).await;
    write(&rig, vec![change("a", Some(1))])
        .await
        .expect("written");
    rig.topic("other", 1).await;
    let name = processor("p");
    let deployed = rig
        .session
        .processors()
        .processor(&name)
        .await
        .expect("it is there");
    let mut spec = deployed.processor.current().unwrap().spec.clone();
    spec.topics = vec![topic("other")];
    for revision in 0..=REVISIONS_KEPT_MAX as u32 {
        spec.retry.attempts_max = revision + 1;
        rig.deploy(spec.clone()).await;
    }
    let before = StatePlace {
        topic: Some(topic("in")),
        ..place()
    };
    assert_eq!(number(&rig, &before, "a").await, Some(1));
    let reset = rig
        .session
        .processors()
        .deploy_and_reset_state(&name, spec)
        .await;
    reset.expect("deployed");
    let gone = rig
        .session
        .processors()
        .state(&before, StateQuery::default())
        .await;
    let gone = gone.expect_err("nothing is left of it");
    assert!(
        matches!(gone, StateAccessError::WhichTopic { .. }),
        "{gone:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_pause_returns_nothing_is_written_any_more() {
    let rig = Rig::start(1).await;
    let slow = counting(|_, _| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        Say::Pass
    });
    let module = rig.upload_handler("m", slow).await;
    rig.deploy(spec(module)).await;
    let running = rig.until(|all| all[0].state == "running").await;
    assert_eq!(running[0].next.0, 0);
    let messages = ["1", "2", "3", "4"].map(|value| ("a", value));
    rig.produce(&messages).await;
    rig.until(|all| all[0].lag > 0).await;
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .expect("paused");
    let version = async || {
        let page = rig
            .session
            .processors()
            .state(&place(), StateQuery::default())
            .await;
        page.expect("shown").version
    };
    let before = version().await;
    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    assert_eq!(version().await, before);
}

#[tokio::test]
async fn many_failures_in_one_batch_are_each_called_alone_and_nothing_is_called_more_than_twice() {
    const MESSAGES: usize = 40;
    let rig = Rig::start(1).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let handler = counting(move |batch, message| {
        counted.fetch_add(1, Ordering::SeqCst);
        match batch.value(message) {
            Some(b"bad") => Say::Reject("bad"),
            _ => Say::Ack,
        }
    });
    let module = rig.upload_handler("m", handler).await;
    let mut spec = spec(module);
    spec.breaker.enabled = false;
    rig.deploy(spec).await;
    let keys: Vec<String> = (0..MESSAGES).map(|at| format!("k{at:02}")).collect();
    let value = |at: usize| if at.is_multiple_of(2) { "bad" } else { "good" };
    let messages = keys.iter().enumerate().map(|(at, key)| (&**key, value(at)));
    rig.produce(&messages.collect::<Vec<_>>()).await;
    rig.settled().await;
    assert_eq!(entries(&rig).await, MESSAGES / 2);
    assert_eq!(number(&rig, &place(), "k01").await, Some(1));
    assert_eq!(number(&rig, &place(), "k02").await, None);
    assert_eq!(rig.letters().await.len(), MESSAGES / 2);
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls <= 2 * MESSAGES, "{calls} for {MESSAGES} messages");
}

#[tokio::test]
async fn a_key_is_found_without_its_partition_and_totals_are_of_all() {
    let rig = Rig::start(4).await;
    let module = rig.upload_handler("count", counting(|_, _| Say::Ack)).await;
    rig.deploy(spec(module)).await;
    let keys: Vec<String> = (0..40).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        rig.produce(&[(key, "x"), (key, "y")]).await;
    }
    rig.settled().await;
    let p = processor("p");
    let totals = rig
        .session
        .processors()
        .state_totals(&p, None)
        .await
        .unwrap();
    assert_eq!(totals.len(), 4);
    assert_eq!(
        totals
            .iter()
            .map(|one| one.page.size.entries)
            .sum::<usize>(),
        40
    );
    for key in &keys {
        let found = rig
            .session
            .processors()
            .state_of_key(&p, None, key.as_bytes())
            .await
            .unwrap();
        assert_eq!(found.len(), 1, "{key}");
        let entry = &found[0].page.entries[0];
        assert_eq!(
            (&*entry.key, entry.value.as_number()),
            (key.as_bytes(), Some(2))
        );
    }
    // A prefix of other keys is a key of its own, and a key in several partitions is found in each.
    let found = rig
        .session
        .processors()
        .state_of_key(&p, None, b"key")
        .await
        .unwrap();
    assert!(found.is_empty());
    for partition in [1, 3] {
        let place = StatePlace {
            partition: PartitionId(partition),
            ..place()
        };
        let writes = StateWrites {
            resets: false,
            changes: vec![change("total", Some(7))],
            adds: None,
        };
        rig.session
            .processors()
            .write_state(&place, writes)
            .await
            .unwrap();
    }
    let found = rig
        .session
        .processors()
        .state_of_key(&p, Some(&topic("in")), b"total")
        .await
        .unwrap();
    let partitions: Vec<u32> = found.iter().map(|one| one.partition.0).collect();
    assert_eq!(partitions, [1, 3]);
    let other = rig
        .session
        .processors()
        .state_totals(&p, Some(&topic("out")))
        .await;
    assert!(matches!(other, Err(StateAccessError::WhichTopic { .. })));
    let nobody = rig
        .session
        .processors()
        .state_of_key(&processor("q"), None, b"total")
        .await;
    assert!(matches!(nobody, Err(StateAccessError::Unknown(_))));
}
