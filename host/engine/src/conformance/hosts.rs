//! Promises to several hosts on one store: each has its work exclusively, hears of the others'
//! changes, and undoes none of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::Offset;

use super::expectations::counts_up;
use super::progress::{commit_progress, up_to};
use super::{
    append, at, end, entries, entry, grow, holds_the_count, make_partition, make_topic, name,
    named, produce, value, values,
};
use crate::contract::{CommitError, Engine, EntryKind, Hold, TopicError, Transaction};
use crate::state::StateTable;

const KIND: EntryKind = EntryKind::Processor;
/// Longer than any host takes to hear of a change.
const HEARD_DURATION_MAX: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Two hosts on one store.
#[derive(Clone)]
pub struct TwoHosts {
    /// The host that `fate` controls.
    pub one: Arc<dyn Engine>,
    /// The other host.
    pub other: Arc<dyn Engine>,
    /// Controls the first host.
    pub fate: Arc<dyn Fate>,
}

/// What may happen to a host.
pub trait Fate: Send + Sync {
    /// It ends without notice, and is considered dead.
    fn die(&self);
    /// It stalls until it is considered dead.
    fn stall(&self);
    /// It continues after that.
    fn come_back(&self);
}

/// Waits until the condition holds.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let heard = async {
        while !is_so().await {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    let heard = tokio::time::timeout(HEARD_DURATION_MAX, heard).await;
    assert!(heard.is_ok(), "it never came to that: {what}");
}

async fn held(engine: &dyn Engine, partition: millrace_model::TopicPartition) -> Option<Hold> {
    let held = engine.hold(&named("group"), partition).await;
    held.expect("the partition is there")
}

/// A partition that both hosts know.
async fn shared(hosts: &TwoHosts, topic: &str) -> millrace_model::TopicPartition {
    let partition = make_partition(&*hosts.one, topic).await;
    until("the other knows the topic", async || {
        hosts.other.topic(&name(topic)).is_some() && hosts.other.ends(partition).is_ok()
    })
    .await;
    partition
}

/// One of them dies, and the other one learns of it.
async fn one_dies(hosts: &TwoHosts) {
    hosts.fate.die();
    let (dead, mut living) = (hosts.one.host(), hosts.other.hosts());
    let gone = living.wait_for(|hosts| hosts.iter().all(|host| host.id != dead));
    let gone = tokio::time::timeout(HEARD_DURATION_MAX, gone).await;
    gone.expect("in time").expect("the engine is open");
}

/// Until then no other host can have it; afterwards the work does not count as left.
pub async fn a_host_has_what_it_holds_alone_until_it_gives_it_back(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    let hold = held(&*hosts.one, partition).await.expect("nobody has it");
    assert!(held(&*hosts.other, partition).await.is_none());
    assert!(!hold.is_lost());
    let written = commit_progress(&*hosts.one, &hold.lease, up_to(1)).await;
    written.expect("it has it");
    hosts.one.release(hold).await.expect("given back");
    let next = held(&*hosts.other, partition)
        .await
        .expect("it was given back");
    assert!(!next.left);
    assert!(held(&*hosts.one, partition).await.is_none());
    let written = commit_progress(&*hosts.other, &next.lease, up_to(2)).await;
    written.expect("the other has it");
}

/// The next holder learns that it was left.
pub async fn what_a_dead_host_held_is_left_for_another(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    let hold = held(&*hosts.one, partition).await.expect("nobody has it");
    hosts.fate.die();
    until("it is taken over", async || {
        held(&*hosts.other, partition).await.is_some()
    })
    .await;
    let taken = held(&*hosts.other, partition).await.expect("it has it");
    assert!(!taken.left, "a host that takes it from itself left nothing");
    let late = commit_progress(&*hosts.one, &hold.lease, up_to(1)).await;
    assert!(late.is_err(), "{late:?}");
    let written = commit_progress(&*hosts.other, &taken.lease, up_to(2)).await;
    written.expect("the other has it");
}

/// As soon as the host is dead, and not only the first time.
pub async fn whoever_takes_over_from_a_dead_host_is_told_so(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    held(&*hosts.one, partition).await.expect("nobody has it");
    one_dies(&hosts).await;
    let taken = held(&*hosts.other, partition).await;
    assert!(taken.expect("the host is dead").left);
}

/// With an operator's claim, the previous holder learns of it and commits nothing more, and the
/// work does not count as left.
pub async fn a_claim_takes_what_a_living_host_holds(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    let mut hold = held(&*hosts.one, partition).await.expect("nobody has it");
    let claimed = hosts.other.claim(&named("group"), partition).await;
    let claimed = claimed.expect("claimed");
    let lease = claimed.lease.clone();
    let told = tokio::time::timeout(HEARD_DURATION_MAX, hold.lost()).await;
    told.expect("whoever had it is told");
    assert!(hold.is_lost());
    let late = commit_progress(&*hosts.one, &hold.lease, up_to(1)).await;
    assert!(matches!(late, Err(CommitError::Fenced { .. })), "{late:?}");
    let written = commit_progress(&*hosts.other, &lease, up_to(2)).await;
    written.expect("claimed");
    assert!(
        held(&*hosts.one, partition).await.is_none(),
        "whoever claimed it has it"
    );
    hosts.other.release(claimed).await.expect("given back");
    let next = held(&*hosts.one, partition).await.expect("nobody holds it");
    assert!(!next.left, "its host lives");
    let late = commit_progress(&*hosts.other, &lease, up_to(3)).await;
    assert!(matches!(late, Err(CommitError::Fenced { .. })), "{late:?}");
    // Releasing an old hold late does not release the current one.
    hosts.one.release(hold).await.expect("nothing happens");
    assert!(held(&*hosts.other, partition).await.is_none());
}

/// The next worker learns whether the previous worker left the work, even if it was claimed in
/// between.
pub async fn a_claim_hides_nothing_that_was_left(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    held(&*hosts.one, partition).await.expect("nobody has it");
    one_dies(&hosts).await;
    for _ in 0..2 {
        let claimed = hosts.other.claim(&named("group"), partition).await;
        let claimed = claimed.expect("claimed");
        assert!(!claimed.left, "it is not to work");
        hosts.other.release(claimed).await.expect("given back");
    }
    let next = held(&*hosts.other, partition).await.expect("nobody has it");
    assert!(next.left);
    let again = held(&*hosts.other, partition).await.expect("it has it");
    assert!(!again.left, "it was told");
}

/// Each holder reads everything that the previous one wrote. Writes without a lease arrive late,
/// and wake watchers.
pub async fn state_goes_over_with_the_work(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    let mut expected = BTreeSet::new();
    let mut engines = [&hosts.one, &hosts.other];
    for number in 0..20 {
        let [engine, other] = engines;
        let hold = held(&**engine, partition).await.expect("nobody has it");
        let table = engine.state(&named("group"), partition).await;
        let table = table.expect("it is there");
        assert_eq!(keys(&table), expected);
        for (key, lease) in [("held", Some(&hold.lease)), ("free", None)] {
            let key = format!("{key} {number}");
            let from = if lease.is_some() { engine } else { other };
            let mut woken = engine.watch_state(&named("group"));
            let write = super::state::one(lease, &named("group"), partition, &key);
            from.commit(write).await.expect("committed");
            expected.insert(key);
            if lease.is_none() {
                let woken = tokio::time::timeout(HEARD_DURATION_MAX, woken.changed()).await;
                woken.expect("in time").expect("the engine is open");
                until("it shows", async || keys(&table) == expected).await;
            }
            assert_eq!(keys(&table), expected);
        }
        engine.release(hold).await.expect("given back");
        engines.reverse();
    }
}

fn keys(table: &StateTable) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let read = table.each_key(|key| {
        keys.insert(String::from_utf8_lossy(key).into_owned());
    });
    read.expect("readable");
    keys
}

/// Even before it knows that it lost its holds.
pub async fn a_host_that_stood_still_commits_nothing_of_what_it_lost(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    let output = shared(&hosts, "outputs").await;
    let hold = held(&*hosts.one, partition).await.expect("nobody has it");
    hosts.fate.stall();
    let mut taken = None;
    for _ in 0..30_000 {
        taken = held(&*hosts.other, partition).await;
        if taken.is_some() {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let taken = taken.expect("it is taken over");
    assert!(taken.left, "nobody can know better");
    hosts.fate.come_back();
    let late = hosts.one.commit(Transaction {
        progress: vec![crate::contract::ProgressWrite {
            partition: hold.lease.partition,
            lease: hold.lease.clone(),
            progress: up_to(1).into(),
        }],
        ..Transaction::produce(vec![append(output, &["late"])])
    });
    let late = late.await;
    assert!(matches!(late, Err(CommitError::Fenced { .. })), "{late:?}");
    assert_eq!(values(&*hosts.other, output).await, [""; 0]);
    assert!(
        held(&*hosts.one, partition).await.is_none(),
        "the other lives"
    );
    let written = commit_progress(&*hosts.other, &taken.lease, up_to(2)).await;
    written.expect("the other has it");
}

/// If no other host took the work meanwhile.
pub async fn a_host_that_stood_still_goes_on_with_what_nobody_took(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    let hold = held(&*hosts.one, partition).await.expect("nobody has it");
    hosts.fate.stall();
    hosts.fate.come_back();
    until("it is listed again", async || {
        let me = hosts.one.host();
        hosts.other.hosts().borrow().iter().any(|h| h.id == me)
    })
    .await;
    if !hold.is_lost() {
        let written = commit_progress(&*hosts.one, &hold.lease, up_to(1)).await;
        written.expect("nobody took it");
        assert!(held(&*hosts.other, partition).await.is_none());
    }
}

/// Each with its own identity, and with the same list on every host.
pub async fn hosts_that_live_are_listed(hosts: TwoHosts) {
    let (one, other) = (hosts.one.host(), hosts.other.host());
    assert_ne!(one, other);
    let mut expected = [one, other];
    expected.sort_unstable();
    let listed = |engine: &dyn Engine| -> Vec<_> {
        engine.hosts().borrow().iter().map(|host| host.id).collect()
    };
    for engine in [&hosts.one, &hosts.other] {
        until("both are listed", async || listed(&**engine) == expected).await;
    }
    hosts.fate.die();
    until("one is gone", async || listed(&*hosts.other) == [other]).await;
}

/// Work is spread by seats, so all hosts must see the same ones; and one that stays keeps its own.
pub async fn each_host_has_a_seat_and_both_see_the_same(hosts: TwoHosts) {
    let seats = |engine: &dyn Engine| -> Vec<_> {
        let listed = engine.hosts().borrow().clone();
        listed.iter().map(|host| (host.id, host.seat)).collect()
    };
    until("both see the same", async || {
        let seen = seats(&*hosts.one);
        let mut taken: Vec<u32> = seen.iter().map(|(_, seat)| *seat).collect();
        taken.sort_unstable();
        seen == seats(&*hosts.other) && taken == [0, 1]
    })
    .await;
    let seen = seats(&*hosts.other);
    let stays = seen.iter().find(|(id, _)| *id == hosts.other.host());
    let stays = stays.copied().expect("it is listed");
    hosts.fate.die();
    until("one is gone, the other stays in its seat", async || {
        seats(&*hosts.other) == [stays]
    })
    .await;
}

/// Without waiting: a caller may go to another host with its next request.
pub async fn what_one_host_has_changed_the_other_knows_once_it_asks(hosts: TwoHosts) {
    for number in 0..20 {
        let topic = make_topic(&*hosts.one, &format!("t{number}"), 1).await;
        let key = format!("k{number}");
        let write = Transaction {
            entries: vec![entry(KIND, &key, Some("v"))],
            ..Transaction::default()
        };
        hosts.one.commit(write).await.expect("written");
        hosts.other.hear().await.expect("the store is there");
        let heard = hosts.other.topic(&topic.spec.name);
        assert_eq!(heard.map(|heard| heard.id), Some(topic.id));
        assert!(hosts.other.entry(KIND, &key).is_some(), "{key}");
        assert_eq!(hosts.other.version(KIND), hosts.one.version(KIND));
    }
}

/// Also on a host that has not heard of the messages that it removes.
pub async fn a_partition_never_starts_after_its_end(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    for _ in 0..20 {
        produce(&*hosts.one, partition, &["a", "b"]).await;
        let trimmed = hosts.other.trim(partition, end(&*hosts.one, partition));
        let start = trimmed.await.expect("trimmed");
        let nothing = hosts.one.trim(partition, Offset::default());
        let told = nothing.await.expect("nothing is trimmed");
        assert_eq!(told, start, "the one has not heard of it");
        let ends = hosts.other.ends(partition).expect("it is known");
        assert_eq!(ends.start, start);
        assert!(ends.start <= ends.end, "{ends:?}");
    }
}

/// Sooner or later. A reported end can be read up to, and never goes back.
pub async fn what_one_host_commits_the_other_comes_to_read(hosts: TwoHosts) {
    const MESSAGES: usize = 200;
    let partition = shared(&hosts, "orders").await;
    let writer = hosts.one.clone();
    let writing = tokio::spawn(async move {
        for number in 0..MESSAGES {
            produce(&*writer, partition, &[format!("{number}")]).await;
            let own = values(&*writer, partition).await.len();
            assert_eq!(own, number + 1, "own commits show when they return");
        }
    });
    let mut seen = Offset::default();
    let reading = async {
        let mut watch = hosts.other.watch(partition).expect("it is known");
        let mut read = 0;
        while read < MESSAGES {
            let told = watch.past(seen).await.expect("it stays");
            assert!(told > seen);
            seen = end(&*hosts.other, partition);
            assert!(seen >= told, "the end never goes back");
            let found = values(&*hosts.other, partition).await.len();
            assert!(found >= read, "what was read stays");
            read = found;
        }
    };
    let read = tokio::time::timeout(HEARD_DURATION_MAX, reading).await;
    read.expect("all of it is heard of");
    writing.await.expect("all was written");
}

/// Whatever the gaps between offsets.
pub async fn both_hosts_count_the_messages_that_are_there(hosts: TwoHosts) {
    let partition = shared(&hosts, "orders").await;
    for (number, size) in [2, 1, 3, 1, 2, 5].into_iter().enumerate() {
        let writer = [&hosts.one, &hosts.other][number % 2];
        produce(&**writer, partition, &vec!["m"; size]).await;
    }
    let last = end(&*hosts.other, partition);
    until("the one hears of it", async || {
        end(&*hosts.one, partition) == last
    })
    .await;
    for host in [&hosts.one, &hosts.other] {
        assert_eq!(holds_the_count(&**host, partition).await, 14);
    }
}

/// For entries and topics that are created, changed or removed; watchers are woken.
pub async fn what_one_host_changes_in_the_catalogue_the_other_hears_of(hosts: TwoHosts) {
    let mut watch = hosts.other.watch_catalogue();
    let write = entry(KIND, "key", Some("first"));
    hosts
        .one
        .commit(entries(vec![write]))
        .await
        .expect("written");
    let woken = tokio::time::timeout(HEARD_DURATION_MAX, watch.changed()).await;
    woken.expect("in time").expect("it is open");
    until("the entry is there", async || {
        value(&*hosts.other, KIND, "key").as_deref() == Some("first")
    })
    .await;
    assert_eq!(
        hosts.other.entry(KIND, "key"),
        hosts.one.entry(KIND, "key"),
        "with the same version"
    );
    let topic = make_topic(&*hosts.one, "orders", 1).await;
    until("the topic is there", async || {
        hosts.other.topic(&name("orders")).as_ref() == Some(&topic)
    })
    .await;
    grow(&*hosts.one, "orders", 3).await;
    until("it has grown", async || {
        let topic = hosts.other.topic(&name("orders"));
        topic.is_some_and(|t| t.spec.partitions == 3 && hosts.other.ends(at(&t, 2)).is_ok())
    })
    .await;
    let taken = hosts
        .other
        .create_topic(super::spec("orders", 1), Vec::new())
        .await;
    assert!(matches!(taken, Err(TopicError::Exists(_))), "{taken:?}");
    let gone = hosts.one.delete_topic(&name("orders"), Vec::new()).await;
    gone.expect("deleted");
    until("it is gone", async || {
        hosts.other.topic(&name("orders")).is_none() && hosts.other.ends(at(&topic, 0)).is_err()
    })
    .await;
}

/// Each host decides on what it has heard, which may be late: then its decision has no effect.
pub async fn what_is_decided_on_something_late_is_a_conflict(hosts: TwoHosts) {
    const STEPS: u64 = 50;
    let counting = [&hosts.one, &hosts.other].map(|engine| {
        let engine = Arc::clone(engine);
        tokio::spawn(async move { counts_up(&*engine, STEPS).await })
    });
    for task in counting {
        task.await.expect("it counts to the end");
    }
    let expected = (2 * STEPS).to_string();
    until("both know the count", async || {
        let counts = [&hosts.one, &hosts.other].map(|engine| value(&**engine, KIND, "count"));
        counts.iter().all(|count| count.as_ref() == Some(&expected))
    })
    .await;
}
