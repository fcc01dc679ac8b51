//! Promises about state: it is written with its transaction or not at all, and is read as it was
//! written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use millrace_model::{Clock as _, GroupName, Offset, SystemClock, Timestamp, TopicPartition};

use super::progress::{assert_fenced, up_to};
use super::{Place, append, at, end, make_partition, make_topic, name, named};
use crate::contract::{CommitError, Engine, Lease, ProgressWrite, ReadError, Transaction};
use crate::state::{
    NEVER, StateChange, StatePage, StateQuery, StateValue, StateWrite, StateWrites,
};

fn change(key: &str, value: Option<&str>) -> StateChange {
    StateChange {
        key: key.as_bytes().into(),
        value: value.map(|value| StateValue::new(value.as_bytes())),
        ends_at: NEVER,
    }
}

fn set(pairs: &[(&str, &str)]) -> StateWrites {
    let changes = pairs.iter().map(|(key, value)| change(key, Some(value)));
    StateWrites {
        resets: false,
        changes: changes.collect(),
        adds: None,
    }
}

fn under(lease: &Lease, writes: StateWrites) -> StateWrite {
    StateWrite {
        group: lease.group.clone(),
        partition: lease.partition,
        lease: Some(lease.clone()),
        writes: Arc::new(writes),
    }
}

/// Writes one entry of a group's state, with or without a lease.
pub(super) fn one(
    lease: Option<&Lease>,
    group: &GroupName,
    partition: TopicPartition,
    key: &str,
) -> Transaction {
    only(StateWrite {
        group: group.clone(),
        partition,
        lease: lease.cloned(),
        writes: Arc::new(set(&[(key, "")])),
    })
}

fn only(write: StateWrite) -> Transaction {
    Transaction {
        state: vec![write],
        ..Transaction::default()
    }
}

async fn page(engine: &dyn Engine, group: &GroupName, partition: TopicPartition) -> StatePage {
    let all = StateQuery {
        entries_max: usize::MAX,
        bytes_max: usize::MAX,
        now: Timestamp(1_700_000_000_000),
        ..StateQuery::default()
    };
    let page = engine.read_state(group, partition, &all).await;
    page.expect("readable")
}

async fn state(
    engine: &dyn Engine,
    group: &GroupName,
    partition: TopicPartition,
) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let page = page(engine, group, partition).await;
    let entries = page.entries.iter();
    entries
        .map(|entry| (text(&entry.key), text(entry.value.as_bytes())))
        .collect()
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    pairs.iter().map(own).collect()
}

/// Together with appends and progress; the shared table shows the same.
pub async fn state_is_written_with_its_transaction(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let (input, output) = (at(&topic, 0), at(&topic, 1));
    let table = engine
        .state(&named("group"), input)
        .await
        .expect("it exists");
    let empty = page(&*engine, &named("group"), input).await;
    let version = empty.version;
    let nothing = StatePage {
        version,
        ..StatePage::default()
    };
    assert_eq!(empty, nothing);
    let lease = engine
        .claim(&named("group"), input)
        .await
        .expect("claimed")
        .lease;
    let whole = Transaction {
        appends: vec![append(output, &["a"])],
        progress: vec![ProgressWrite {
            partition: lease.partition,
            lease: lease.clone(),
            progress: up_to(7).into(),
        }],
        state: vec![under(&lease, set(&[("b", "2"), ("a", "1"), ("c", "3")]))],
        ..Transaction::default()
    };
    engine.commit(whole).await.expect("committed");
    let found = page(&*engine, &named("group"), input).await;
    assert_eq!(found.as_of, Offset(7));
    assert_eq!(found.size.entries, 3);
    let all = pairs(&[("a", "1"), ("b", "2"), ("c", "3")]);
    assert_eq!(state(&*engine, &named("group"), input).await, all);
    let second = StateWrites {
        resets: false,
        changes: vec![change("a", None), change("b", Some("4"))],
        adds: None,
    };
    let second = engine.commit(only(under(&lease, second))).await;
    second.expect("committed");
    let left = pairs(&[("b", "4"), ("c", "3")]);
    assert_eq!(state(&*engine, &named("group"), input).await, left);
    assert_eq!(table.size().entries, 2);
}

/// Also if the caller no longer waits for the commit: the next holder of the turn sees all of it,
/// or it never takes effect.
pub async fn a_turn_lasts_until_what_was_written_under_it_is_there(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let hold = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed");
    let table = engine
        .state(&named("group"), partition)
        .await
        .expect("a table");
    for round in 0..50 {
        let turn = table.turn().await;
        let written = Transaction {
            turns: turn.held().into_iter().collect(),
            ..only(under(&hold.lease, set(&[("round", &round.to_string())])))
        };
        // Only as long as the request takes.
        let commit = engine.commit(written);
        let _ = tokio::time::timeout(std::time::Duration::ZERO, commit).await;
        drop(turn);
        let _turn = table.turn().await;
        let seen = table.page(&StateQuery::default()).unwrap().version;
        // Earlier requests are decided before this one.
        let after = only(under(&hold.lease, StateWrites::default()));
        engine.commit(after).await.expect("committed");
        let last = table.page(&StateQuery::default()).unwrap().version;
        assert!(last <= seen + 1, "something came after the turn");
    }
}

/// Whether the engine removes it or the holder of the turn.
pub async fn what_has_ended_is_removed_and_nothing_goes_with_it(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let hold = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed");
    let table = engine
        .state(&named("group"), partition)
        .await
        .expect("a table");
    let clock = SystemClock::new();
    let now = clock.wall().0;
    let ending = |key: &str, ends_at| StateChange {
        ends_at: Timestamp(ends_at),
        ..change(key, Some("1"))
    };
    let keys: Vec<String> = (0..20).map(|number| format!("ends {number}")).collect();
    let changes = keys.iter().map(|key| ending(key, now - 1));
    let others = [change("stays", Some("1")), ending("lives on", now - 1)];
    let writes = StateWrites {
        changes: changes.chain(others).collect(),
        ..StateWrites::default()
    };
    let moved = StateWrites {
        changes: vec![ending("lives on", now + 3_600_000)],
        ..StateWrites::default()
    };
    for writes in [writes, moved] {
        let committed = engine.commit(only(under(&hold.lease, writes))).await;
        committed.expect("committed");
    }
    for _ in 0..10_000 {
        if table.size().entries == 2 {
            break;
        }
        let turn = table.turn().await;
        table.sweep(clock.wall(), 7);
        let ended = table.find_ended(clock.wall(), 7, usize::MAX);
        let ended = ended.expect("readable");
        if !ended.is_empty() {
            let removal = Transaction {
                turns: turn.held().into_iter().collect(),
                ..only(under(&hold.lease, ended.into_writes()))
            };
            engine.commit(removal).await.expect("committed");
        }
        drop(turn);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(table.size().entries, 2);
    let query = StateQuery {
        entries_max: 100,
        bytes_max: usize::MAX,
        now: clock.wall(),
        ..StateQuery::default()
    };
    let page = engine.read_state(&named("group"), partition, &query).await;
    let page = page.expect("readable");
    let left: Vec<&[u8]> = page.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(left, [&b"lives on"[..], b"stays"]);
}

/// Its entries are as of one transaction, and match the progress returned with them.
pub async fn a_page_is_of_one_moment_while_commits_go_on(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let hold = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed");
    let lease = hold.lease.clone();
    let writing = async {
        for round in 1..=200 {
            let number = round.to_string();
            let transaction = Transaction {
                progress: vec![ProgressWrite {
                    partition,
                    lease: lease.clone(),
                    progress: up_to(round).into(),
                }],
                ..only(under(&lease, set(&[("a", &number), ("b", &number)])))
            };
            engine.commit(transaction).await.expect("committed");
        }
    };
    let reading = async {
        for _ in 0..200 {
            let page = page(&*engine, &named("group"), partition).await;
            let values = page.entries.iter().map(|entry| entry.value.as_bytes());
            let expected = page.as_of.0.to_string();
            let count = if page.as_of == Offset(0) { 0 } else { 2 };
            assert!(values.eq(std::iter::repeat_n(expected.as_bytes(), count)));
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writing, reading);
}

/// Neither under the lease of its progress, nor under its own.
pub async fn a_fenced_transaction_writes_no_state(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let old = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let new = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let before = end(&*engine, partition);
    let fenced = engine
        .commit(Transaction {
            appends: vec![append(partition, &["a"])],
            state: vec![under(&old, set(&[("a", "old")]))],
            ..Transaction::default()
        })
        .await;
    assert_fenced(&fenced, &old);
    assert_eq!(end(&*engine, partition), before);
    assert_eq!(
        state(&*engine, &named("group"), partition).await,
        pairs(&[])
    );
    let under_new = engine.commit(only(under(&new, set(&[("a", "new")])))).await;
    under_new.expect("its lease holds");
    assert_eq!(
        state(&*engine, &named("group"), partition).await,
        pairs(&[("a", "new")])
    );
}

/// With the same key in all of them.
pub async fn state_is_kept_per_group_and_partition(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let places = [("x", 0), ("x", 1), ("y", 0)];
    for (group, partition) in places {
        let lease = engine.claim(&named(group), at(&topic, partition)).await;
        let lease = lease.expect("claimed").lease;
        let value = format!("{group}{partition}");
        let write = under(&lease, set(&[("key", &value)]));
        engine.commit(only(write)).await.expect("committed");
    }
    for (group, partition) in places {
        let value = format!("{group}{partition}");
        let found = state(&*engine, &named(group), at(&topic, partition)).await;
        assert_eq!(found, pairs(&[("key", &value)]));
    }
    // Looking a table up does not create state.
    let looked = engine.state(&named("y"), at(&topic, 1)).await;
    assert_eq!(looked.expect("it exists").size().entries, 0);
    let of_x = [at(&topic, 0), at(&topic, 1)];
    assert_eq!(
        engine
            .state_partitions(&named("x"))
            .await
            .expect("readable"),
        of_x
    );
    assert_eq!(
        engine
            .state_partitions(&named("y"))
            .await
            .expect("readable"),
        of_x[..1]
    );
    assert_eq!(
        engine
            .state_partitions(&named("z"))
            .await
            .expect("readable"),
        []
    );
}

/// Also if the write is in the very next transaction.
pub async fn a_reset_leaves_what_is_written_after_it(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let lease = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let write = under(&lease, set(&[("a", "1"), ("b", "2")]));
    engine.commit(only(write)).await.expect("committed");
    let reset = StateWrites {
        resets: true,
        ..set(&[("b", "3")])
    };
    engine
        .commit(only(under(&lease, reset)))
        .await
        .expect("committed");
    assert_eq!(
        state(&*engine, &named("group"), partition).await,
        pairs(&[("b", "3")])
    );
    let write = under(&lease, set(&[("a", "4")]));
    engine.commit(only(write)).await.expect("committed");
    let left = pairs(&[("a", "4"), ("b", "3")]);
    assert_eq!(state(&*engine, &named("group"), partition).await, left);
}

/// Redriven messages write to their original partition; an operator writes without a lease.
pub async fn state_may_be_written_under_the_lease_of_another_partition_or_none(
    engine: Arc<dyn Engine>,
) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let (home, redrive) = (at(&topic, 0), at(&topic, 1));
    let old = engine
        .claim(&named("group"), redrive)
        .await
        .expect("claimed")
        .lease;
    let lease = engine
        .claim(&named("group"), redrive)
        .await
        .expect("claimed")
        .lease;
    let home_write = |lease: Option<&Lease>, value| StateWrite {
        group: named("group"),
        partition: home,
        lease: lease.cloned(),
        writes: Arc::new(set(&[("a", value)])),
    };
    let fenced = engine.commit(only(home_write(Some(&old), "1"))).await;
    assert_fenced(&fenced, &old);
    for (lease, value) in [(Some(&lease), "2"), (None, "3")] {
        let written = engine.commit(only(home_write(lease, value))).await;
        written.expect("committed");
        assert_eq!(
            state(&*engine, &named("group"), home).await,
            pairs(&[("a", value)])
        );
    }
    assert_eq!(state(&*engine, &named("group"), redrive).await, pairs(&[]));
}

/// A holder of a deleted topic's table can no longer write.
pub async fn state_goes_with_its_topic(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let lease = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let write = under(&lease, set(&[("a", "1")]));
    engine.commit(only(write.clone())).await.expect("committed");
    let deleted = engine.delete_topic(&name("orders"), Vec::new()).await;
    deleted.expect("deleted");
    let refused = engine.commit(only(write)).await;
    assert!(
        matches!(refused, Err(CommitError::UnknownPartition(at)) if at == partition),
        "{refused:?}"
    );
    assert!(matches!(
        engine.state(&named("group"), partition).await,
        Err(ReadError::UnknownPartition(at)) if at == partition
    ));
    let again = make_partition(&*engine, "orders").await;
    assert_eq!(state(&*engine, &named("group"), again).await, pairs(&[]));
}

/// With random long and short values that are replaced, removed and emptied; some of them expire.
pub async fn state_is_what_was_written_however_often_it_is_reopened<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let mut engine = place.open().await;
    let partition = make_partition(&*engine, "orders").await;
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    // A pseudo-random sequence that is the same each time.
    let mut number = 1_u64;
    let mut next = |below: u64| {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (number >> 33) % below
    };
    for round in 0..5 {
        let lease = engine
            .claim(&named("group"), partition)
            .await
            .expect("claimed")
            .lease;
        for _ in 0..40 {
            let resets = next(60) == 0;
            let mut changes = BTreeMap::new();
            for _ in 0..next(20) {
                let key = format!("key {}", next(50));
                let value = format!("{round} {}", "x".repeat(next(60) as usize));
                let fate = next(10);
                let mut change = change(&key, (fate > 1).then_some(&*value));
                if fate == 2 {
                    change.ends_at = Timestamp(1_600_000_000_000);
                }
                changes.insert(key, change);
            }
            if resets {
                model.clear();
            }
            for (key, change) in &changes {
                match &change.value {
                    Some(value) if change.ends_at == NEVER => {
                        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                        model.insert(key.clone(), value);
                    }
                    _ => drop(model.remove(key)),
                }
            }
            let writes = StateWrites {
                resets,
                changes: changes.into_values().collect(),
                adds: None,
            };
            // The engine removes expired entries under its own turn, and must not remove entries
            // that replaced them meanwhile.
            let table = engine.state(&named("group"), partition).await;
            let turn = table.expect("readable").turn().await;
            let transaction = Transaction {
                turns: turn.held().into_iter().collect(),
                ..only(under(&lease, writes))
            };
            let committed = engine.commit(transaction).await;
            committed.expect("committed");
        }
        assert_eq!(state(&*engine, &named("group"), partition).await, model);
        engine = place.reopen(engine).await;
        assert_eq!(state(&*engine, &named("group"), partition).await, model);
    }
    engine.close().await;
}
