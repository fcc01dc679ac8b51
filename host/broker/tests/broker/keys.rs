//! Callers whom an identity provider vouches for: they act as a principal for as long as that counts, and touch only some keys.

use std::sync::Arc;
use std::time::Duration;

use millrace_broker::state::{StatePage, StateQuery};
use millrace_broker::{
    AppendRequest, Caller, FetchRequest, KeyPattern, Presented, ProduceError, Proved, ReadRequest,
    Session, StateAccessError, Unproved,
};
use millrace_engine::MemoryEngine;
use millrace_model::{
    BatchBuilder, Clock, Offset, PartitionId, PrincipalName, RecordBatch, Rule, Timestamp,
};

use crate::rig::{Modules, Rig, Say, SetClock, message, per_message, spec, topic};
use crate::states::{change, place, write};

fn users() -> PrincipalName {
    PrincipalName::parse("users").unwrap()
}

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

async fn may(rig: &Rig, texts: &[&str]) {
    let access = rig.session.access();
    access.set_principal(&users(), rules(texts)).await.unwrap();
}

fn presented(until: Timestamp) -> Presented {
    Presented {
        principal: users(),
        subject: Some("ann".into()),
        scope: None,
        keys: Some(vec![
            KeyPattern::One(b"ann"[..].into()),
            KeyPattern::Beginning(b"ann:"[..].into()),
        ]),
        until,
    }
}

/// Somebody who may do everything, with the keys of `ann`.
async fn ann(rig: &Rig) -> Session {
    may(rig, &["admin"]).await;
    let far = Timestamp(u64::MAX);
    let proved = rig.session.access().prove_as(presented(far)).unwrap();
    rig.broker
        .session(Caller::unnamed().standing(proved.standing))
}

fn batch(keys: &[&str]) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    keys.iter()
        .for_each(|key| builder.push(&message(key, "v").message));
    builder.finish().unwrap()
}

async fn append(session: &Session, keys: &[&str]) -> Result<(), ProduceError> {
    let request = AppendRequest {
        topic: topic("in"),
        batches: vec![(PartitionId(0), batch(keys))],
        durability: None,
    };
    session.messages().append(request).await.map(drop)
}

fn keys_of(batches: &[RecordBatch]) -> Vec<String> {
    let mut keys = Vec::new();
    for batch in batches.iter().filter(|batch| !batch.is_control()) {
        for view in batch.records().unwrap() {
            let key = &batch.bytes()[view.unwrap().key.unwrap()];
            keys.push(String::from_utf8_lossy(key).into_owned());
        }
    }
    keys
}

#[tokio::test]
async fn batches_are_read_without_the_messages_of_others_and_over_all_offsets() {
    let rig = Rig::start(1).await;
    let ann = ann(&rig).await;
    append(&rig.session, &["bob", "ann", "ann:1"])
        .await
        .unwrap();
    append(&rig.session, &["bob", "anna"]).await.unwrap();
    append(&ann, &["ann:2"]).await.unwrap();
    let refused = append(&ann, &["ann:3", "bob"]).await.unwrap_err();
    assert!(matches!(refused, ProduceError::Forbidden(_)), "{refused}");
    let expected = ["ann", "ann:1", "ann:2"];
    let request = ReadRequest {
        topic: topic("in"),
        partition: PartitionId(0),
        from: Offset(0),
        bytes_max: 1 << 20,
    };
    let read = ann.messages().read(request).await.unwrap();
    assert_eq!(keys_of(&read.batches), expected);
    assert_eq!((read.next, read.ends.end), (Offset(6), Offset(6)));
    let mut covered = Offset(0);
    for batch in &read.batches {
        assert_eq!(batch.base_offset(), covered);
        covered = batch.end_offset();
    }
    let mut subscription = ann.messages().subscribe();
    subscription
        .add(&topic("in"), PartitionId(0), Offset(0))
        .unwrap();
    subscription.grant(1 << 20);
    let mut seen = Vec::new();
    let mut next = Offset(0);
    while next < Offset(6) {
        let delivery = tokio::time::timeout(Duration::from_secs(30), subscription.next()).await;
        let delivery = delivery.expect("in time").unwrap();
        seen.extend(keys_of(&delivery.batches));
        next = delivery.next;
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_fetch_passes_over_messages_of_others_whatever_its_room() {
    let rig = Rig::start(1).await;
    let ann = ann(&rig).await;
    for round in 0..20 {
        let own = format!("ann:{round}");
        append(&rig.session, &["bob", &own, "bob", "anna"])
            .await
            .unwrap();
    }
    for (messages_max, bytes_max) in [(1, 1 << 20), (3, 1 << 20), (100, 1), (100, 1 << 20)] {
        let (mut from, mut seen) = (Offset(0), 0);
        while from < Offset(80) {
            let request = FetchRequest {
                topic: topic("in"),
                partition: PartitionId(0),
                from,
                messages_max,
                bytes_max,
                wait: Duration::ZERO,
            };
            let fetched = ann.messages().fetch(request).await.unwrap();
            assert!(fetched.next > from, "it goes on");
            from = fetched.next;
            for fetched in fetched.messages {
                let key = fetched.message.key.unwrap();
                assert_eq!(key, format!("ann:{seen}").as_bytes());
                seen += 1;
            }
        }
        assert_eq!(seen, 20, "{messages_max} messages, {bytes_max} bytes");
    }
}

#[tokio::test]
async fn state_of_other_keys_is_neither_listed_nor_written() {
    let rig = Rig::start(1).await;
    let module = rig.upload_handler("m", per_message(|_, _| Say::Ack)).await;
    rig.deploy(spec(module)).await;
    let ann = ann(&rig).await;
    let all = [
        "aa", "ann", "ann9", "ann:1", "ann:2", "ann:3", "anna", "bob",
    ];
    let all = all.iter().map(|key| change(key, Some(1)));
    write(&rig, all.collect()).await.unwrap();
    let page = async |query: StateQuery| ann.processors().state(&place(), query).await;
    for entries_max in [1, 2, 100] {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let query = StateQuery {
                after: after.clone(),
                entries_max,
                ..StateQuery::default()
            };
            let StatePage {
                entries,
                has_more,
                size,
                ..
            } = page(query).await.unwrap();
            assert_eq!((size.entries, size.bytes), (0, 0));
            seen.extend(
                entries
                    .iter()
                    .map(|entry| String::from_utf8_lossy(&entry.key).into_owned()),
            );
            after = entries.last().map(|entry| entry.key.to_vec());
            if !has_more {
                break;
            }
        }
        assert_eq!(
            seen,
            ["ann", "ann:1", "ann:2", "ann:3"],
            "{entries_max} at once"
        );
    }
    let below = |prefix: &str| StateQuery {
        prefix: prefix.as_bytes().to_vec(),
        entries_max: 100,
        ..StateQuery::default()
    };
    assert_eq!(page(below("ann:2")).await.unwrap().entries.len(), 1);
    let is_refused = |error: StateAccessError| matches!(error, StateAccessError::Forbidden(_));
    assert!(is_refused(page(below("b")).await.unwrap_err()));
    let processors = ann.processors();
    let name = place().processor;
    assert!(is_refused(
        processors
            .state_of_key(&name, None, b"anna")
            .await
            .unwrap_err()
    ));
    assert_eq!(
        processors
            .state_of_key(&name, None, b"ann")
            .await
            .unwrap()
            .len(),
        1
    );
    assert!(is_refused(
        processors.state_totals(&name, None).await.unwrap_err()
    ));
    let writes = |changes, resets| millrace_broker::state::StateWrites {
        resets,
        changes,
        adds: None,
    };
    let own = vec![change("ann:4", Some(2))];
    processors
        .write_state(&place(), writes(own.clone(), false))
        .await
        .unwrap();
    assert!(is_refused(
        processors
            .write_state(&place(), writes(own, true))
            .await
            .unwrap_err()
    ));
    let both = vec![change("ann:4", Some(3)), change("bob", None)];
    assert!(is_refused(
        processors
            .write_state(&place(), writes(both, false))
            .await
            .unwrap_err()
    ));
}

async fn ends(proved: &Proved) {
    let ended = tokio::time::timeout(Duration::from_secs(30), proved.ended.cancelled()).await;
    ended.expect("it ends in time");
}

#[tokio::test]
async fn what_is_presented_counts_until_it_expires_or_its_principal_changes() {
    let clock = Arc::new(SetClock::default());
    let engine = MemoryEngine::new(clock.clone());
    let rig = Rig::by(clock.clone(), engine, Arc::<Modules>::default()).await;
    let access = rig.session.access();
    let soon = presented(clock.wall().after(Duration::from_secs(60)));
    let unknown = access.prove_as(soon.clone()).unwrap_err();
    assert_eq!(unknown, Unproved::NoPrincipal(users()));
    may(&rig, &["viewer"]).await;
    let (first, other) = (access.prove_as(soon.clone()), access.prove_as(soon.clone()));
    let (first, other) = (first.unwrap(), other.unwrap());
    let caller = Caller::unnamed()
        .named("root")
        .standing(first.standing.clone());
    assert_eq!(caller.signature(), "users/ann");
    // A token that is made changes the entry, and not what it may do.
    may(&rig, &["viewer"]).await;
    assert!(access.still_counts(&first));
    may(&rig, &["consumer"]).await;
    assert!(!access.still_counts(&first) && other.ended.is_cancelled());
    let second = access.prove_as(soon.clone()).unwrap();
    access.delete_principal(&users()).await.unwrap();
    ends(&second).await;
    may(&rig, &["consumer"]).await;
    let third = access.prove_as(soon.clone()).unwrap();
    clock.step(60_000);
    ends(&third).await;
    assert_eq!(access.prove_as(soon).unwrap_err(), Unproved::Unknown);
}
