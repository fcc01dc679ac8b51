//! Dead letters: their evidence, and sending them again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use millrace_broker::handler::{BatchHandler, Called};
use millrace_broker::state::StateAttempt;
use millrace_broker::{
    CallError, CallUse, DeadLetter, DeadLetterError, DeadLetterFilter, DeadLetterQuery, GuestLine,
    MessagePlace, RedriveRequest, Redriven, Redrives,
};
use millrace_engine::{Append, Engine, EntryKind, EntryWrite, Transaction};
use millrace_model::bounds::{DEAD_LETTERS_LISTED_BYTES_MAX, MESSAGE_HEADERS_MAX};
use millrace_model::{Answer, BatchBuilder, ColumnBatch, Offset, PartitionId, Timestamp};

use crate::rig::{
    Rig, Say, digest, per_message, processor, spec, text, topic, trap, unreadable_after,
};

fn all() -> DeadLetterQuery {
    DeadLetterQuery {
        filter: DeadLetterFilter {
            redriven: Redrives::Also,
            ..DeadLetterFilter::default()
        },
        ..DeadLetterQuery::default()
    }
}

async fn found(rig: &Rig, query: DeadLetterQuery) -> Vec<DeadLetter> {
    let page = rig
        .session
        .dead_letters()
        .dead_letters(&processor("p"), query)
        .await;
    page.unwrap().letters
}

async fn redrive_all(rig: &Rig) -> Result<Redriven, DeadLetterError> {
    let all = RedriveRequest::all();
    rig.session
        .dead_letters()
        .redrive(&processor("p"), all)
        .await
}

#[tokio::test]
async fn a_dead_letter_is_the_message_unchanged_with_its_evidence() {
    let rig = Rig::deployed(2, |_| (), |_, _| trap()).await;
    let placed = rig.produce(&[("a", "0"), ("a", "1")]).await;
    rig.hold("in.p.dlq", &["0", "1"]).await;
    let letters = found(&rig, all()).await;
    let letter = &letters[1];
    assert_eq!(letter.topic, topic("in.p.dlq"));
    assert_eq!(letter.origin_topic, topic("in"));
    assert_eq!(letter.origin_partition, placed[1].partition());
    assert_eq!(letter.partition, placed[1].partition());
    assert_eq!(Some(letter.origin_offset), placed[1].offset());
    assert_eq!((letter.revision, letter.attempts), (1, 3));
    assert_eq!(letter.module, digest("m").to_string());
    assert_eq!(
        (letter.cause.as_str(), letter.class.as_str()),
        ("trap", "trap")
    );
    assert_eq!(letter.reason, "unreachable");
    assert_eq!(letter.backtrace.as_deref(), Some("poison\nprocess"));
    assert!(letter.first_failed_at <= letter.died_at);
    assert!(letter.first_failed_at.0 > 0);
    let log = letter.attempt_log.as_array().unwrap();
    assert_eq!(log.len(), 3);
    assert_eq!(log[2]["reason"], "unreachable");
    assert!(!letter.redriven);
    let original = &rig.messages("in").await[1];
    assert_eq!(letter.message.key, original.key);
    assert_eq!(letter.message.value, original.value);
    assert_eq!(letter.message.timestamp, original.timestamp);
    assert_eq!(letter.message.headers[0], original.headers[0]);
    let shown = rig
        .session
        .dead_letters()
        .dead_letter(
            &processor("p"),
            &letter.topic,
            letter.partition,
            letter.offset,
        )
        .await
        .unwrap();
    assert_eq!(shown.message, letter.message);
}

#[tokio::test]
async fn a_rejected_message_is_dead_at_once_and_listed_by_its_class() {
    let rig = Rig::deployed(
        1,
        |_| (),
        |batch, message| match text(batch.value(message)).as_str() {
            "blast" => Say::Reject("quarry"),
            _ => Say::Reject("other"),
        },
    )
    .await;
    rig.produce(&[("a", "blast"), ("b", "noise"), ("c", "blast")])
        .await;
    rig.hold("in.p.dlq", &["blast", "noise", "blast"]).await;
    let mut filter = all();
    filter.filter.class = Some("quarry".to_owned());
    let letters = found(&rig, filter.clone()).await;
    assert_eq!(letters.len(), 2);
    assert!(
        letters
            .iter()
            .all(|letter| letter.attempts == 1 && letter.cause == "reject")
    );
    filter.letters_max = 1;
    let letters = found(&rig, filter).await;
    assert_eq!(letters.len(), 1);
}

/// A handler that reports what its calls used.
struct Measured;

#[async_trait]
impl BatchHandler for Measured {
    async fn process(&self, _: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        Err(CallError::Timeout(Duration::from_secs(1)))
    }

    async fn call(&self, batch: &Arc<ColumnBatch>, _: Option<Box<StateAttempt>>) -> Called {
        let outcome = match text(batch.value(0)).as_str() {
            "slow" => self.process(batch).await,
            _ => per_message(|_, _| Say::Reject("bad")).process(batch).await,
        };
        let used = Some(used(batch.len() as u32));
        Called {
            outcome: outcome.map(|answer| (answer, None)),
            used,
        }
    }
}

fn used(messages: u32) -> CallUse {
    let line = GuestLine {
        at: Timestamp(7),
        level: "info".to_owned(),
        revision: 1,
        text: "here I am \"é\"".to_owned(),
    };
    CallUse {
        guest_us: 1_234,
        memory_bytes: 65_536,
        messages,
        log: vec![line],
    }
}

#[tokio::test]
async fn a_dead_letter_tells_what_the_call_used_that_it_died_of() {
    let rig = Rig::start(1).await;
    let mut spec = spec(rig.upload_handler("measured", Measured).await);
    spec.retry.attempts_max = 1;
    rig.deploy(spec).await;
    rig.produce(&[("a", "slow")]).await;
    rig.hold("in.p.dlq", &["slow"]).await;
    rig.produce(&[("a", "bad")]).await;
    rig.hold("in.p.dlq", &["slow", "bad"]).await;
    for letter in rig.letters().await {
        assert_eq!(letter.call, Some(used(1)), "{}", letter.cause);
    }
    // A handler that measures nothing leaves no such evidence.
    let quiet = per_message(|_, _| Say::Reject("no"));
    rig.deploy(crate::rig::spec(rig.upload_handler("quiet", quiet).await))
        .await;
    rig.produce(&[("a", "quiet")]).await;
    rig.hold("in.p.dlq", &["slow", "bad", "quiet"]).await;
    assert_eq!(rig.letters().await[2].call, None);
}

/// A broker with three dead letters, and a switch that makes its processor pass them.
async fn three_dead() -> (Rig, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let rig = Rig::deployed(
        2,
        |_| (),
        move |batch, message| {
            assert_eq!(
                batch.topic, "in",
                "redriven messages come from where they first came"
            );
            assert_eq!(batch.headers(message).count(), 1, "and show no evidence");
            match gate.load(Ordering::SeqCst) {
                true => Say::Pass,
                false => Say::Reject("closed"),
            }
        },
    )
    .await;
    rig.produce(&[("a", "1"), ("b", "2"), ("c", "3")]).await;
    rig.hold("in.p.dlq", &["1", "2", "3"]).await;
    (rig, open)
}

#[tokio::test]
async fn dead_letters_are_sent_again_once_even_if_asked_for_at_the_same_time() {
    let (rig, open) = three_dead().await;
    open.store(true, Ordering::SeqCst);
    let (one, two) = tokio::join!(redrive_all(&rig), redrive_all(&rig));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.sent + two.sent, one.already + two.already), (3, 3));
    rig.hold("out", &["1", "2", "3"]).await;
    let original = rig.messages("in").await;
    assert!(
        rig.messages("out")
            .await
            .iter()
            .all(|message| original.contains(message))
    );
    let fresh = found(&rig, Default::default()).await;
    assert!(fresh.is_empty());
    let letters = found(&rig, all()).await;
    assert!(letters.len() == 3 && letters.iter().all(|letter| letter.redriven));
}

#[tokio::test]
async fn when_what_was_sent_again_cannot_be_read_nothing_is_sent_twice() {
    let (rig, open) = three_dead().await;
    open.store(true, Ordering::SeqCst);
    redrive_all(&rig).await.unwrap();
    let spoilt = rig.engine.entries(EntryKind::Redriven).into_iter();
    let spoilt = spoilt.map(|(key, _)| EntryWrite {
        kind: EntryKind::Redriven,
        key,
        value: Some("of another time".into()),
    });
    let transaction = Transaction {
        entries: spoilt.collect(),
        ..Transaction::default()
    };
    assert!(!transaction.entries.is_empty());
    rig.engine.commit(transaction).await.unwrap();
    let refused = redrive_all(&rig).await;
    assert!(matches!(refused, Err(DeadLetterError::Catalogue(_))));
}

#[tokio::test]
async fn what_is_on_record_as_a_whole_stays_sent() {
    let (rig, open) = three_dead().await;
    open.store(true, Ordering::SeqCst);
    let letters = found(&rig, all()).await;
    let (place, offset) = (letters[1].partition, letters[1].offset);
    let dead = rig.session.catalogue().topic(&letters[1].topic).unwrap();
    let sent = format!("[[{},{}]]", offset.0, offset.0 + 1);
    let before_blocks = EntryWrite {
        kind: EntryKind::Redriven,
        key: dead.partition(place).unwrap().to_string(),
        value: Some(sent.into()),
    };
    let transaction = Transaction {
        entries: vec![before_blocks],
        ..Transaction::default()
    };
    rig.engine.commit(transaction).await.unwrap();
    let name = processor("p");
    assert_eq!(
        rig.session
            .dead_letters()
            .dead_letters_waiting(&name)
            .await
            .unwrap(),
        2
    );
    let done = redrive_all(&rig).await.unwrap();
    assert_eq!((done.sent, done.already), (2, 1));
    assert_eq!(redrive_all(&rig).await.unwrap().already, 3);
    assert_eq!(
        rig.session
            .dead_letters()
            .dead_letters_waiting(&name)
            .await
            .unwrap(),
        0
    );
}

/// However many letters were sent before, a redrive rewrites only the records around its own
/// letters.
#[tokio::test]
async fn what_was_sent_again_is_on_record_piece_by_piece_and_goes_with_its_letters() {
    let (rig, open) = three_dead().await;
    open.store(true, Ordering::SeqCst);
    let name = processor("p");
    let letter = found(&rig, all()).await.swap_remove(0);
    let dead = rig.session.catalogue().topic(&letter.topic).unwrap();
    let shelf = dead.partition(letter.partition).unwrap();
    let more = async |count: usize| {
        let mut batch = BatchBuilder::with_capacity(0);
        (0..count).for_each(|_| batch.push(&letter.message));
        let (partition, batch) = (shelf, batch.finish().unwrap());
        let append = Append { partition, batch };
        let receipt = rig.engine.commit(Transaction::produce(vec![append])).await;
        receipt.unwrap().base_offsets[0]
    };
    more(6_000).await;
    let sent = redrive_all(&rig).await.unwrap().sent;
    assert_eq!(sent, 6_003);
    assert_eq!(redrive_all(&rig).await.unwrap().sent, 0);
    let on_record = || rig.engine.entries(EntryKind::Redriven);
    let of_shelf = |key: &String| key.starts_with(&format!("{shelf}#"));
    let before = on_record();
    let blocks = before.iter().filter(|(key, _)| of_shelf(key)).count();
    assert_eq!(blocks, 2);

    let last = more(1).await;
    assert_eq!(redrive_all(&rig).await.unwrap().sent, 1);
    let after = on_record();
    let changed = after.iter().filter(|entry| !before.contains(entry));
    assert_eq!(changed.count(), 1, "only the block of the letter");
    assert_eq!(
        rig.session
            .dead_letters()
            .dead_letters_waiting(&name)
            .await
            .unwrap(),
        0
    );

    rig.engine.trim(shelf, last).await.unwrap();
    more(1).await;
    assert_eq!(redrive_all(&rig).await.unwrap().sent, 1);
    let kept = on_record();
    let blocks = kept.iter().filter(|(key, _)| of_shelf(key)).count();
    assert_eq!(blocks, 1, "of letters that are gone nothing is on record");

    rig.settled().await;
    rig.session
        .processors()
        .delete_processor(&name)
        .await
        .unwrap();
    rig.session
        .catalogue()
        .delete_topic(&letter.topic, true)
        .await
        .unwrap();
    assert!(on_record().is_empty());
}

#[tokio::test]
async fn some_dead_letters_are_sent_again_and_the_others_stay() {
    let (rig, open) = three_dead().await;
    open.store(true, Ordering::SeqCst);
    let name = processor("p");
    let letters = found(&rig, all()).await;
    let chosen = &letters[1];
    let which = RedriveRequest::places(vec![chosen.place()]);
    let done = rig
        .session
        .dead_letters()
        .redrive(&name, which.clone())
        .await
        .unwrap();
    assert_eq!((done.sent, done.already), (1, 0));
    let done = rig
        .session
        .dead_letters()
        .redrive(&name, which)
        .await
        .unwrap();
    assert_eq!((done.sent, done.already), (0, 1));
    rig.hold("out", &[&text(chosen.message.value.as_deref())])
        .await;
    let fresh = found(&rig, Default::default()).await;
    assert_eq!(fresh.len(), 2);
}

#[tokio::test]
async fn a_redriven_message_that_dies_again_tells_where_it_first_stood() {
    let (rig, _closed) = three_dead().await;
    let first = found(&rig, all()).await;
    assert_eq!(redrive_all(&rig).await.unwrap().sent, 3);
    rig.hold("in.p.dlq", &["1", "2", "3", "1", "2", "3"]).await;
    let fresh = found(&rig, Default::default()).await;
    assert_eq!(fresh.len(), 3);
    for letter in fresh {
        let before = first
            .iter()
            .find(|before| before.message.value == letter.message.value);
        let before = before.unwrap();
        assert_eq!(letter.origin_topic, topic("in"));
        assert_eq!(letter.origin_offset, before.origin_offset);
        assert_eq!(letter.origin_partition, before.origin_partition);
        assert_eq!((before.redrives, letter.redrives), (0, 1));
        // Only the number of redrives remains of the evidence of the first death.
        let headers = before.message.headers.len() + 1;
        assert_eq!(letter.message.headers.len(), headers);
    }
}

#[tokio::test]
async fn what_is_no_dead_letter_of_the_processor_is_not_sent() {
    let (rig, _closed) = three_dead().await;
    let name = processor("p");
    for (of, partition, offset) in [("in", 0, 0), ("in.p.dlq", 9, 0), ("in.p.dlq", 0, 99)] {
        let place = MessagePlace {
            topic: topic(of),
            partition: PartitionId(partition),
            offset: Offset(offset),
        };
        let which = RedriveRequest::places(vec![place]);
        let refused = rig.session.dead_letters().redrive(&name, which).await;
        let none = matches!(refused, Err(DeadLetterError::NoSuchDeadLetter { .. }));
        assert!(none, "{of}: {refused:?}");
    }
    let unknown = rig
        .session
        .dead_letters()
        .redrive(&processor("nobody"), RedriveRequest::all())
        .await;
    assert!(matches!(unknown, Err(DeadLetterError::UnknownProcessor(_))));
}

#[tokio::test]
async fn a_message_with_as_many_headers_as_may_be_dies_and_is_sent_again_like_any_other() {
    let rig = Rig::deployed(
        1,
        |_| (),
        |batch, message| match batch.offsets[message] {
            0 if batch.attempts[message] == 1 => Say::Retry(Some(1)),
            0 => Say::Reject("no"),
            _ => Say::Pass,
        },
    )
    .await;
    let mut laden = crate::rig::message("k", "laden");
    let header = laden.message.headers[0].clone();
    laden.message.headers = vec![header; MESSAGE_HEADERS_MAX];
    let produced = laden.message.clone();
    rig.session
        .messages()
        .produce(&topic("in"), vec![laden])
        .await
        .unwrap();
    rig.settled().await;
    let letters = rig.letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].message.value, produced.value);
    let spec = spec(
        rig.upload_handler("passes", per_message(|_, _| Say::Pass))
            .await,
    );
    rig.deploy(spec).await;
    assert_eq!(redrive_all(&rig).await.unwrap().sent, 1);
    rig.hold("out", &["laden"]).await;
    assert_eq!(rig.messages("out").await, [produced]);
}

#[tokio::test]
async fn a_damaged_dead_letter_does_not_hide_those_after_it() {
    let (rig, open) = three_dead().await;
    let dead = rig.session.catalogue().topic(&topic("in.p.dlq")).unwrap();
    for partition in dead.partitions() {
        let append = Append {
            partition,
            batch: unreadable_after(&[]),
        };
        let transaction = Transaction::produce(vec![append]);
        rig.engine().commit(transaction).await.unwrap();
    }
    rig.produce(&[("a", "4"), ("b", "5"), ("c", "6")]).await;
    rig.settled().await;
    assert_eq!(rig.letters().await.len(), 6);
    open.store(true, Ordering::SeqCst);
    assert_eq!(redrive_all(&rig).await.unwrap().sent, 6);
    rig.hold("out", &["1", "2", "3", "4", "5", "6"]).await;
}

#[tokio::test]
async fn a_listing_of_large_dead_letters_ends_at_its_bytes() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Reject("no")).await;
    let value = "x".repeat(4 << 20);
    for _ in 0..10 {
        rig.produce(&[("a", &value), ("b", &value)]).await;
    }
    rig.settled().await;
    let listed: usize = rig
        .letters()
        .await
        .iter()
        .map(|letter| letter.message.byte_count())
        .sum();
    let max = DEAD_LETTERS_LISTED_BYTES_MAX;
    assert!((max..max + (16 << 20)).contains(&listed), "{listed} bytes");
    assert_eq!(redrive_all(&rig).await.unwrap().sent, 20);
}
