//! Dead letters sent again: as many as fit, at a pace, and changed; how often each was sent is
//! remembered, and every redrive is recorded.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use millrace_broker::{
    AuditAction, AuditEntry, DeadLetterError, DeadLetterFilter, LetterEdit, RedriveRequest,
    RedriveWhich, Redrives,
};
use millrace_engine::Engine;
use millrace_model::bounds::{AUDIT_LISTED_MAX, MESSAGE_BYTES_MAX, REDRIVES_MAX};
use millrace_model::{Header, TopicSpec};

use crate::rig::{Rig, processor, topic};
use crate::workplace::{by_first_word, dead, found, redrive};

async fn audit(rig: &Rig) -> Vec<AuditEntry> {
    let name = processor("p");
    let page = rig
        .session
        .dead_letters()
        .audit(&name, None, AUDIT_LISTED_MAX);
    page.await.unwrap().entries
}

/// Waits until there have been `count` dead letters in all.
async fn until_dead(rig: &Rig, count: usize) {
    for _ in 0..5_000 {
        if rig.values("in.p.dlq").await.len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("there were never {count} dead letters");
}

#[tokio::test]
async fn a_redrive_takes_what_fits_and_at_most_so_many_and_is_on_record() {
    let (rig, open) = by_first_word(2).await;
    dead(&rig, 10).await;
    open.store(true, Ordering::SeqCst);
    let class = Some("odd".to_owned());
    let odd = DeadLetterFilter {
        class,
        ..DeadLetterFilter::default()
    };
    let request = RedriveRequest {
        letters_max: Some(3),
        ..RedriveRequest::matching(odd.clone())
    };
    let ada = rig.named("ada");
    let ada = ada.dead_letters();
    let first = ada.redrive(&processor("p"), request.clone()).await.unwrap();
    assert_eq!((first.sent, first.skipped), (3, 0));
    let next = first.next.clone().unwrap();
    let which = RedriveWhich::Matching {
        filter: Box::new(odd.clone()),
        from: Some(next),
    };
    let next = RedriveRequest { which, ..request };
    let second = ada.redrive(&processor("p"), next).await.unwrap();
    assert_eq!((second.sent, second.next), (2, None));
    let (bob, name) = (rig.named("bob"), processor("p"));
    let all = bob.dead_letters().redrive(&name, RedriveRequest::all());
    let all = all.await.unwrap();
    assert_eq!((all.sent, all.already), (5, 5));
    rig.settled().await;
    assert_eq!(rig.values("out").await.len(), 10);
    let entries = audit(&rig).await;
    let by = |name: &str| -> usize {
        let of = entries.iter().filter(|entry| entry.by == name);
        of.map(|entry| entry.count).sum()
    };
    assert_eq!((by("ada"), by("bob")), (5, 5));
    assert!(entries.iter().all(|entry| {
        entry.action == AuditAction::Redrive && entry.topic == topic("in.p.dlq") && entry.at.0 > 0
    }));
    // The topic is kept like any other, and is still there after a restart.
    let again = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    assert_eq!(audit(&again).await, entries);
    let none = again
        .session
        .dead_letters()
        .audit(&processor("nobody"), None, 1)
        .await;
    assert!(matches!(none, Err(DeadLetterError::UnknownProcessor(_))));
}

#[tokio::test]
async fn an_audit_trail_is_read_page_by_page() {
    let (rig, open) = by_first_word(2).await;
    dead(&rig, 6).await;
    open.store(true, Ordering::SeqCst);
    for letter in found(&rig, DeadLetterFilter::default()).await {
        let one = RedriveRequest::places(vec![letter.place()]);
        assert_eq!(redrive(&rig, one).await.sent, 1);
    }
    let (name, mut from, mut count) = (processor("p"), None, 0);
    loop {
        let page = rig.session.dead_letters().audit(&name, from.as_ref(), 2);
        let page = page.await.unwrap();
        assert!(page.entries.len() <= 2);
        count += page.entries.len();
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(count, 6);
}

#[tokio::test]
async fn where_another_topic_has_the_audit_trail_s_name_nothing_is_sent() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 1).await;
    // Directories of earlier versions may have such a topic.
    let theirs = TopicSpec {
        name: topic("in.p.audit"),
        owner: None,
        ..rig.session.catalogue().topic(&topic("in")).unwrap().spec
    };
    rig.engine.create_topic(theirs, Vec::new()).await.unwrap();
    let refused = rig
        .session
        .dead_letters()
        .redrive(&processor("p"), RedriveRequest::all())
        .await;
    assert!(
        matches!(refused, Err(DeadLetterError::Audit(_))),
        "{refused:?}"
    );
    assert_eq!(rig.messages("in.p.redrive").await, []);
    assert_eq!(rig.letters().await.len(), 1);
}

#[tokio::test]
async fn a_message_that_keeps_dying_is_left_alone_by_redrives_of_many_unless_they_say_again() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 1).await;
    for redrives in 0..REDRIVES_MAX {
        let waiting = rig.letters().await;
        assert_eq!((waiting.len(), waiting[0].redrives), (1, redrives));
        assert_eq!(redrive(&rig, RedriveRequest::all()).await.sent, 1);
        until_dead(&rig, redrives as usize + 2).await;
    }
    let left = redrive(&rig, RedriveRequest::all()).await;
    assert_eq!((left.sent, left.skipped), (0, 1));
    let mut forced = RedriveRequest::all();
    forced.again = true;
    assert_eq!(redrive(&rig, forced).await.sent, 1);
    until_dead(&rig, REDRIVES_MAX as usize + 2).await;
    let waiting = rig.letters().await;
    assert_eq!(waiting[0].redrives, REDRIVES_MAX + 1);
    // Naming it explicitly counts as intent.
    let named = RedriveRequest::places(vec![waiting[0].place()]);
    assert_eq!(redrive(&rig, named).await.sent, 1);
}

#[tokio::test]
async fn an_edited_letter_is_sent_once_and_the_letter_stays_as_it_died() {
    let (rig, open) = by_first_word(1).await;
    dead(&rig, 1).await;
    open.store(true, Ordering::SeqCst);
    let letter = rig.letters().await.remove(0);
    let name = processor("p");
    let edit = LetterEdit {
        key: Some(None),
        value: Some(Some("mended".into())),
        remove_headers: vec!["colour".into()],
        set_headers: vec![Header {
            name: "size".into(),
            value: Some("7".into()),
        }],
    };
    let place = letter.place();
    let ada = rig.named("ada");
    let edited = ada
        .dead_letters()
        .edit_and_redrive(&name, &place, edit.clone());
    assert_eq!(edited.await.unwrap().sent, 1);
    rig.hold("out", &["mended"]).await;
    let sent = rig.messages("out").await.remove(0);
    assert_eq!((sent.key, sent.timestamp), (None, letter.message.timestamp));
    assert_eq!(sent.headers, edit.set_headers);
    let again = rig
        .session
        .dead_letters()
        .edit_and_redrive(&name, &place, edit)
        .await;
    assert!(
        matches!(again, Err(DeadLetterError::AlreadySent(_))),
        "{again:?}"
    );
    let all = DeadLetterFilter {
        redriven: Redrives::Only,
        ..DeadLetterFilter::default()
    };
    assert_eq!(found(&rig, all).await[0].message, letter.message);
    let entries = audit(&rig).await;
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (entries[0].action, entries[0].by.as_str()),
        (AuditAction::Edit, "ada")
    );
    let digests = entries[0].edit.clone().unwrap();
    assert_ne!(digests.before.value, digests.after.value);
    assert!(digests.before.key.is_some() && digests.after.key.is_none());
    assert_ne!(digests.before.headers, digests.after.headers);
    // The output of `printf mended | sha256sum`.
    let known = "2481edd3b03fb258be1d053d556298e7cc5d7e3c2c9c6a04776b20505335d8b3";
    assert_eq!(digests.after.value.unwrap().to_string(), known);
}

#[tokio::test]
async fn an_edit_that_could_not_have_been_produced_is_refused_and_nothing_is_sent() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 1).await;
    let place = rig.letters().await[0].place();
    let header = |name: &'static str| Header {
        name: name.into(),
        value: None,
    };
    let edits = [
        LetterEdit::default(),
        LetterEdit {
            set_headers: vec![header("millrace-origin-offset")],
            ..LetterEdit::default()
        },
        LetterEdit {
            set_headers: vec![header("a"); 2_000],
            ..LetterEdit::default()
        },
        LetterEdit {
            value: Some(Some(vec![b'x'; MESSAGE_BYTES_MAX + 1].into())),
            ..LetterEdit::default()
        },
    ];
    for edit in edits {
        let refused = rig
            .session
            .dead_letters()
            .edit_and_redrive(&processor("p"), &place, edit)
            .await;
        assert!(
            matches!(refused, Err(DeadLetterError::Edit(_))),
            "{refused:?}"
        );
    }
    assert_eq!(rig.letters().await.len(), 1);
}

#[tokio::test]
async fn a_paced_redrive_keeps_its_rate_and_whoever_stops_it_repeats_and_loses_nothing() {
    let (rig, open) = by_first_word(2).await;
    dead(&rig, 60).await;
    open.store(true, Ordering::SeqCst);
    let paced = RedriveRequest {
        per_second: NonZeroU32::new(50),
        ..RedriveRequest::all()
    };
    let (name, began) = (processor("p"), Instant::now());
    let stopped = tokio::time::timeout(
        Duration::from_millis(400),
        rig.session.dead_letters().redrive(&name, paced.clone()),
    );
    assert!(
        stopped.await.is_err(),
        "60 at 50 a second take more than a second"
    );
    let by_then = 60 - rig.letters().await.len();
    assert!(
        (5..=35).contains(&by_then),
        "{by_then} sent in {:?}",
        began.elapsed()
    );
    let began = Instant::now();
    let rest = redrive(&rig, paced).await;
    // The transaction that was under way at the stop was completed.
    assert_eq!((rest.sent + rest.already, rest.next.clone()), (60, None));
    assert!((1..=60 - by_then).contains(&rest.sent), "{rest:?}");
    let expected = Duration::from_millis(20) * (rest.sent as u32 - 5);
    assert!(began.elapsed() >= expected, "{:?}", began.elapsed());
    rig.settled().await;
    let values: BTreeSet<String> = rig.values("out").await.into_iter().collect();
    assert_eq!((values.len(), rig.values("out").await.len()), (60, 60));
}
