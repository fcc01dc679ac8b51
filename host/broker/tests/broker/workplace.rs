//! Working with dead letters: they are found, counted, tried with another revision, and kept for as
//! long as they are wanted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use millrace_broker::{
    DeadLetter, DeadLetterError, DeadLetterFilter, DeadLetterPage, DeadLetterQuery, DryRunRequest,
    HeaderFilter, MessagePlace, RedriveRequest, RedriveWhich, Redriven, Redrives, TopicPatch,
};
use millrace_model::{Offset, PartitionId, Timestamp};

use crate::rig::{Rig, Say, message, per_message, processor, spec, text, topic, trap};
use crate::states::{counting, number, place};

/// A broker whose processor rejects with the value's first word as the class, except for values
/// that the test lets pass.
pub(crate) async fn by_first_word(partitions: u32) -> (Rig, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let change = |spec: &mut millrace_model::ProcessorSpec| spec.dead_letters.max = 100_000;
    let rig = Rig::deployed(partitions, change, move |batch, message| {
        match text(batch.value(message)) {
            _ if gate.load(Ordering::SeqCst) => Say::Pass,
            value if value.starts_with("odd") => Say::Reject("odd"),
            _ => Say::Reject("even"),
        }
    })
    .await;
    (rig, open)
}

/// Makes `count` dead letters, `odd 1`, `even 2` and so on.
pub(crate) async fn dead(rig: &Rig, count: usize) {
    let word = |n: usize| if n % 2 == 1 { "odd" } else { "even" };
    let messages: Vec<(String, String)> = (0..count)
        .map(|n| (format!("key {n}"), format!("{} {n}", word(n))))
        .collect();
    let messages: Vec<(&str, &str)> = messages
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    rig.produce(&messages).await;
    rig.settled().await;
}

async fn page(rig: &Rig, query: DeadLetterQuery) -> DeadLetterPage {
    let page = rig
        .session
        .dead_letters()
        .dead_letters(&processor("p"), query)
        .await;
    page.unwrap()
}

pub(crate) async fn found(rig: &Rig, filter: DeadLetterFilter) -> Vec<DeadLetter> {
    let query = DeadLetterQuery {
        filter,
        ..DeadLetterQuery::default()
    };
    page(rig, query).await.letters
}

pub(crate) async fn redrive(rig: &Rig, request: RedriveRequest) -> Redriven {
    let done = rig
        .session
        .dead_letters()
        .redrive(&processor("p"), request)
        .await;
    done.unwrap()
}

fn value(letter: &DeadLetter) -> String {
    text(letter.message.value.as_deref())
}

#[tokio::test]
async fn dead_letters_are_found_by_each_part_of_the_filter_and_by_all_at_once() {
    let (rig, _) = by_first_word(3).await;
    dead(&rig, 12).await;
    let letters = found(&rig, DeadLetterFilter::default()).await;
    assert_eq!(letters.len(), 12);
    let one = &letters[5];
    let header = |name: &'static str, value: Option<&'static str>| {
        Some(HeaderFilter {
            name: name.into(),
            value: value.map(Bytes::from),
        })
    };
    let none = DeadLetterFilter::default;
    let in_partition = letters
        .iter()
        .filter(|letter| letter.origin_partition == one.origin_partition)
        .count();
    let cases = [
        (
            6,
            DeadLetterFilter {
                class: Some("odd".into()),
                ..none()
            },
        ),
        (
            12,
            DeadLetterFilter {
                cause: Some("reject".into()),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                cause: Some("trap".into()),
                ..none()
            },
        ),
        (
            12,
            DeadLetterFilter {
                revision: Some(1),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                revision: Some(2),
                ..none()
            },
        ),
        (
            1,
            DeadLetterFilter {
                key: Some("key 7".into()),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                key: Some("key".into()),
                ..none()
            },
        ),
        (
            12,
            DeadLetterFilter {
                header: header("colour", None),
                ..none()
            },
        ),
        (
            12,
            DeadLetterFilter {
                header: header("colour", Some("red")),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                header: header("colour", Some("blue")),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                header: header("millrace-class", None),
                ..none()
            },
        ),
        (
            1,
            DeadLetterFilter {
                text: Some("odd 7".into()),
                ..none()
            },
        ),
        (
            12,
            DeadLetterFilter {
                text: Some("said ".into()),
                ..none()
            },
        ),
        (
            12,
            DeadLetterFilter {
                origin_topic: Some(topic("in")),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                origin_topic: Some(topic("out")),
                ..none()
            },
        ),
        (
            in_partition,
            DeadLetterFilter {
                origin_partition: Some(one.origin_partition),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                until: Some(Timestamp(1)),
                ..none()
            },
        ),
        (
            12,
            DeadLetterFilter {
                since: Some(Timestamp(1)),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                redriven: Redrives::Only,
                ..none()
            },
        ),
        (
            1,
            DeadLetterFilter {
                class: Some("odd".into()),
                text: Some("7".into()),
                key: Some("key 7".into()),
                ..none()
            },
        ),
        (
            0,
            DeadLetterFilter {
                class: Some("even".into()),
                text: Some("odd 7".into()),
                ..none()
            },
        ),
    ];
    for (count, filter) in cases {
        let said = format!("{filter:?}");
        assert_eq!(found(&rig, filter).await.len(), count, "{said}");
    }
}

#[tokio::test]
async fn pages_give_every_letter_once_and_the_last_one_says_so() {
    let (rig, _) = by_first_word(3).await;
    dead(&rig, 20).await;
    for letters_max in [1, 3, 7, 20, 21] {
        let (mut from, mut values) = (None, Vec::new());
        loop {
            let class = Some("even".to_owned());
            let query = DeadLetterQuery {
                filter: DeadLetterFilter {
                    class,
                    ..DeadLetterFilter::default()
                },
                from,
                letters_max,
            };
            let page = page(&rig, query).await;
            assert!(page.letters.len() <= letters_max);
            values.extend(page.letters.iter().map(value));
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        let distinct: BTreeSet<&String> = values.iter().collect();
        assert_eq!((values.len(), distinct.len()), (10, 10), "{letters_max}");
    }
    let beyond = MessagePlace {
        topic: topic("zzz"),
        partition: PartitionId(0),
        offset: Offset(0),
    };
    let query = DeadLetterQuery {
        from: Some(beyond),
        ..DeadLetterQuery::default()
    };
    assert!(page(&rig, query).await.letters.is_empty());
}

#[tokio::test]
async fn groups_count_what_died_alike_and_show_one_of_each() {
    let (rig, _) = by_first_word(2).await;
    dead(&rig, 9).await;
    let name = processor("p");
    let all = DeadLetterFilter::default();
    let groups = rig
        .session
        .dead_letters()
        .dead_letter_groups(&name, &all, None, 10)
        .await
        .unwrap();
    let counted: Vec<_> = groups
        .groups
        .iter()
        .map(|group| {
            (
                group.class.as_str(),
                group.cause.as_str(),
                group.revision,
                group.count,
            )
        })
        .collect();
    assert_eq!(counted, [("even", "reject", 1, 5), ("odd", "reject", 1, 4)]);
    assert_eq!((groups.count, groups.others, groups.next), (9, 0, None));
    for group in &groups.groups {
        let MessagePlace {
            topic,
            partition,
            offset,
        } = &group.sample;
        let sample = rig
            .session
            .dead_letters()
            .dead_letter(&name, topic, *partition, *offset);
        assert_eq!(sample.await.unwrap().class, group.class);
        assert!(group.first_died_at <= group.last_died_at);
        assert_eq!(group.sample_reason, format!("said {}", group.class));
    }
    let one = rig
        .session
        .dead_letters()
        .dead_letter_groups(&name, &all, None, 1)
        .await
        .unwrap();
    assert_eq!((one.groups.len(), one.count, one.others), (1, 9, 4));
}

#[tokio::test]
async fn a_dry_run_says_what_a_revision_would_do_and_does_nothing() {
    let calls = Arc::new(AtomicUsize::new(0));
    let (rig, _) = by_first_word(2).await;
    dead(&rig, 10).await;
    let counted = Arc::clone(&calls);
    let repaired = per_message(move |batch, message| {
        counted.fetch_add(1, Ordering::SeqCst);
        assert_eq!((batch.topic.as_str(), batch.attempts[message]), ("in", 1));
        assert_eq!(batch.headers(message).count(), 1, "no evidence is shown");
        match text(batch.value(message)).as_str() {
            "odd 3" => trap(),
            "even 4" => Say::Retry(None),
            "even 6" => Say::Ack,
            _ => Say::Pass,
        }
    });
    // Deployed, and rolled back before it has seen anything: the first revision is current again.
    let name = processor("p");
    rig.session.processors().pause(&name).await.unwrap();
    rig.deploy(spec(rig.upload_handler("repaired", repaired).await))
        .await;
    rig.session
        .processors()
        .rollback(&name, None)
        .await
        .unwrap();
    let request = |revision| DryRunRequest {
        which: RedriveRequest::all().which,
        revision,
        letters_max: 1_000,
    };
    let run = rig
        .session
        .dead_letters()
        .dry_run(&name, request(Some(2)))
        .await
        .unwrap();
    let counts: Vec<_> = run
        .outcomes
        .iter()
        .map(|outcome| {
            (
                outcome.outcome.as_str(),
                outcome.class.as_str(),
                outcome.count,
            )
        })
        .collect();
    assert_eq!(counts[0], ("ok", "", 8));
    assert!(counts.contains(&("trap", "trap", 1)) && counts.contains(&("retry", "busy", 1)));
    assert_eq!((run.revision, run.letters, run.outputs), (2, 10, 7));
    assert_eq!((run.samples.len(), run.next, run.stopped), (7, None, None));
    assert_eq!(run.samples[0].topic, topic("out"));
    assert!(calls.load(Ordering::SeqCst) >= 10);
    let now = rig
        .session
        .dead_letters()
        .dry_run(&name, request(None))
        .await
        .unwrap();
    assert_eq!((now.revision, now.outcomes.len(), now.outputs), (1, 2, 0));
    let unknown = rig
        .session
        .dead_letters()
        .dry_run(&name, request(Some(9)))
        .await;
    assert!(matches!(unknown, Err(DeadLetterError::Revision(_))));
    let few = DryRunRequest {
        letters_max: 3,
        ..request(Some(2))
    };
    let few = rig
        .session
        .dead_letters()
        .dry_run(&name, few)
        .await
        .unwrap();
    assert!(few.letters == 3 && few.next.is_some());
    // None of it had an effect.
    assert_eq!(rig.letters().await.len(), 10);
    assert_eq!(rig.messages("out").await, []);
    assert!(
        rig.session
            .catalogue()
            .topic(&topic("in.p.audit"))
            .is_none()
    );
}

#[tokio::test]
async fn a_dry_run_sees_the_committed_state_and_writes_none() {
    let rig = Rig::start(1).await;
    let picky = counting(|batch, message| match text(batch.value(message)).as_str() {
        "bad" => Say::Reject("bad"),
        _ => Say::Pass,
    });
    rig.deploy(spec(rig.upload_handler("picky", picky).await))
        .await;
    rig.produce(&[("k", "good"), ("k", "bad"), ("k", "bad")])
        .await;
    rig.settled().await;
    assert_eq!(number(&rig, &place(), "k").await, Some(1));
    let request = DryRunRequest {
        which: RedriveRequest::all().which,
        revision: None,
        letters_max: 10,
    };
    let run = rig
        .session
        .dead_letters()
        .dry_run(&processor("p"), request)
        .await
        .unwrap();
    assert_eq!((run.letters, run.outcomes[0].count), (2, 2));
    assert_eq!(number(&rig, &place(), "k").await, Some(1));
}

#[tokio::test]
async fn how_many_wait_is_known_whatever_was_sent_or_trimmed() {
    let (rig, open) = by_first_word(1).await;
    let name = processor("p");
    let waiting = async || {
        rig.session
            .dead_letters()
            .dead_letters_waiting(&name)
            .await
            .unwrap()
    };
    assert_eq!(waiting().await, 0);
    dead(&rig, 10).await;
    assert_eq!(waiting().await, 10);
    open.store(true, Ordering::SeqCst);
    let three = RedriveRequest {
        letters_max: Some(3),
        ..RedriveRequest::all()
    };
    assert_eq!(redrive(&rig, three).await.sent, 3);
    assert_eq!(waiting().await, 7);
    let before = millrace_broker::Before::Offset(Offset(5));
    rig.session
        .catalogue()
        .trim(&topic("in.p.dlq"), None, before)
        .await
        .unwrap();
    assert_eq!(waiting().await, 5);
    assert_eq!(redrive(&rig, RedriveRequest::all()).await.sent, 5);
    assert_eq!(waiting().await, 0);
    rig.settled().await;
    assert_eq!(rig.values("out").await.len(), 8);
}

#[tokio::test]
async fn how_long_dead_letters_are_kept_can_be_changed() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 1).await;
    let patch = TopicPatch {
        settings: serde_json::from_str(r#"{"retention_ms": 86400000}"#).unwrap(),
        ..TopicPatch::default()
    };
    for name in ["in.p.dlq", "in.p.redrive"] {
        let changed = rig
            .session
            .catalogue()
            .change_topic(&topic(name), patch.clone())
            .await;
        assert_eq!(
            changed.unwrap().topic.spec.settings.retention_ms,
            Some(86_400_000)
        );
    }
    // A revision deployed later does not change that.
    let passes = per_message(|_, _| Say::Pass);
    rig.deploy(spec(rig.upload_handler("passes", passes).await))
        .await;
    let kept = rig.session.catalogue().topic(&topic("in.p.dlq")).unwrap();
    assert_eq!(kept.spec.settings.retention_ms, Some(86_400_000));
    rig.session
        .messages()
        .produce(&topic("in"), vec![message("k", "v")])
        .await
        .unwrap();
    rig.hold("out", &["v"]).await;
}

#[tokio::test]
async fn dry_runs_page_by_page_try_each_letter_once() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 10).await;
    let (mut from, mut tried) = (None, 0);
    loop {
        let request = DryRunRequest {
            which: RedriveWhich::Matching {
                filter: Default::default(),
                from,
            },
            revision: None,
            letters_max: 3,
        };
        let run = rig
            .session
            .dead_letters()
            .dry_run(&processor("p"), request)
            .await
            .unwrap();
        tried += run.letters;
        from = run.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(tried, 10);
}

#[tokio::test]
async fn a_redrive_of_what_was_sent_again_sends_nothing() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 4).await;
    let filter = DeadLetterFilter {
        redriven: Redrives::Only,
        ..DeadLetterFilter::default()
    };
    let request = RedriveRequest::matching(filter);
    let done = rig
        .session
        .dead_letters()
        .redrive(&processor("p"), request)
        .await
        .unwrap();
    assert_eq!(done.sent, 0);
    assert_eq!(rig.letters().await.len(), 4);
}
