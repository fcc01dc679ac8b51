//! Chains of processors: messages in a cycle come to an end, or the cycle is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use millrace_broker::{ProcessorError, RedriveRequest};
use millrace_engine::{Append, Transaction};
use millrace_model::columns::OutcomeCode;
use millrace_model::{
    Answer, BatchBuilder, ColumnBatch, Header, Message, PartitionId, ProcessorSpec, TopicPartition,
};

use crate::rig::{Rig, Say, message, per_message, processor, spec, text, topic, whole};

fn hops(message: &Message) -> Option<String> {
    let found = message.headers.iter().find(|h| h.name == "millrace-hops");
    found.map(|header| text(header.value.as_deref()))
}

fn refusal(error: &ProcessorError) -> String {
    match error {
        ProcessorError::InvalidSpec(why) => why.clone(),
        other => panic!("{other}"),
    }
}

/// A specification that passes everything from `from` to `to`.
async fn passing(rig: &Rig, from: &str, to: &str, hops_max: Option<u32>) -> ProcessorSpec {
    let module = rig.upload_handler("pass", per_message(|_, _| Say::Pass));
    ProcessorSpec {
        topics: vec![topic(from)],
        output: Some(topic(to)),
        hops_max,
        ..spec(module.await)
    }
}

/// The hops of a topic's messages, in order.
async fn all_hops(rig: &Rig, name: &str) -> Vec<Option<String>> {
    let mut all: Vec<_> = rig.messages(name).await.iter().map(hops).collect();
    all.sort();
    all
}

fn counts(hops: &[u32]) -> Vec<Option<String>> {
    hops.iter()
        .map(|n| (*n > 0).then(|| n.to_string()))
        .collect()
}

#[tokio::test]
async fn a_processor_that_writes_to_its_own_input_ends_after_its_hops() {
    let rig = Rig::start(1).await;
    rig.deploy(passing(&rig, "in", "in", Some(3)).await).await;
    rig.produce(&[("a", "x"), ("b", "y")]).await;
    rig.settled().await;
    assert_eq!(
        all_hops(&rig, "in").await,
        counts(&[0, 0, 1, 1, 2, 2, 3, 3])
    );
    let letters = rig.letters().await;
    assert_eq!(letters.len(), 2);
    for letter in &letters {
        assert_eq!(
            (letter.class.as_str(), letter.cause.as_str()),
            ("hops", "reject")
        );
        assert_eq!(letter.attempts, 1);
    }
    let status = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    assert!(
        format!("{:?}", status.breaker).contains("losed"),
        "{:?}",
        status.breaker
    );
}

#[tokio::test]
async fn hops_are_carried_through_processors_that_do_not_count() {
    let rig = Rig::start(2).await;
    rig.deploy(passing(&rig, "in", "out", Some(2)).await).await;
    let back = passing(&rig, "out", "in", None).await;
    rig.session
        .processors()
        .deploy(&processor("q"), back)
        .await
        .unwrap();
    rig.produce(&[("a", "x")]).await;
    rig.hold("in.p.dlq", &["x"]).await;
    assert_eq!(all_hops(&rig, "in").await, counts(&[0, 1, 2]));
    assert_eq!(all_hops(&rig, "out").await, counts(&[1, 2]));
    assert_eq!(all_hops(&rig, "in.p.dlq").await, counts(&[2]));
}

#[tokio::test]
async fn messages_beside_one_that_came_too_often_are_processed() {
    let rig = Rig::start(1).await;
    // Messages with the value `once` end here; the others go round until they have too many hops.
    let handler = per_message(|batch, message| match text(batch.value(message)).as_str() {
        "once" => Say::Ack,
        _ => Say::Pass,
    });
    let module = rig.upload_handler("some", handler).await;
    let mut looping = spec(module);
    looping.output = Some(topic("in"));
    looping.hops_max = Some(2);
    rig.deploy(looping).await;
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    let mut messages: Vec<(String, &str)> = Vec::new();
    for n in 0..40 {
        messages.push((n.to_string(), if n % 3 == 0 { "round" } else { "once" }));
    }
    let messages: Vec<(&str, &str)> = messages.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    rig.produce(&messages).await;
    rig.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    rig.settled().await;
    assert_eq!(rig.letters().await.len(), 14);
    assert_eq!(rig.values("in").await.len(), 40 + 2 * 14);
}

#[tokio::test]
async fn a_component_cannot_say_how_many_hops_there_were() {
    let rig = Rig::start(1).await;
    let lie = |batch: &ColumnBatch| {
        let count = batch.len();
        let name = b"millrace-hops0";
        let start = batch.data.len() as u32;
        Ok(Answer {
            outcomes: vec![OutcomeCode::Emit as u8; count],
            sources: (0..count as u32).collect(),
            data: name.to_vec(),
            header_ends: (1..=count as u32).collect(),
            headers: [start, 13, start + 13, 1].repeat(count),
            ..Answer::default()
        })
    };
    let module = rig.upload_handler("lie", whole(lie)).await;
    let mut first = spec(module);
    first.hops_max = Some(5);
    rig.deploy(first.clone()).await;
    rig.topic("end", 1).await;
    let second = ProcessorSpec {
        topics: vec![topic("out")],
        output: Some(topic("end")),
        hops_max: None,
        ..first
    };
    rig.session
        .processors()
        .deploy(&processor("q"), second)
        .await
        .unwrap();
    rig.produce(&[("a", "x")]).await;
    rig.hold("end", &["x"]).await;
    assert_eq!(all_hops(&rig, "out").await, counts(&[1]));
    assert_eq!(all_hops(&rig, "end").await, counts(&[1]));
}

#[tokio::test]
async fn a_cycle_in_which_nobody_counts_is_refused_and_spelled_out() {
    let rig = Rig::start(1).await;
    let own = passing(&rig, "in", "in", None).await;
    let refused = rig
        .session
        .processors()
        .deploy(&processor("p"), own)
        .await
        .unwrap_err();
    assert!(refusal(&refused).contains("p -> in -> p"), "{refused}");
    assert!(refusal(&refused).contains("hops_max"));
    rig.deploy(passing(&rig, "in", "out", None).await).await;
    let back = passing(&rig, "out", "in", None).await;
    let deploy = async |spec| rig.session.processors().deploy(&processor("q"), spec).await;
    let refused = deploy(back.clone()).await.unwrap_err();
    assert!(
        refusal(&refused).contains("q -> in -> p -> out -> q"),
        "{refused}"
    );
    let counted = ProcessorSpec {
        hops_max: Some(4),
        ..back
    };
    rig.topic("aside", 1).await;
    deploy(passing(&rig, "aside", "in", None).await)
        .await
        .unwrap();
    deploy(counted).await.unwrap();
    assert!(
        deploy(passing(&rig, "out", "in", Some(0)).await)
            .await
            .is_err()
    );
    // The revision before it was not part of a cycle, and is not now.
    rig.session
        .processors()
        .rollback(&processor("q"), None)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_redriven_message_that_came_too_often_begins_anew() {
    let rig = Rig::start(1).await;
    rig.deploy(passing(&rig, "in", "in", Some(1)).await).await;
    rig.produce(&[("a", "x")]).await;
    rig.settled().await;
    assert_eq!(rig.letters().await.len(), 1);
    let all = RedriveRequest::all();
    rig.session
        .dead_letters()
        .redrive(&processor("p"), all)
        .await
        .unwrap();
    rig.hold("in", &["x", "x", "x"]).await;
    rig.hold("in.p.dlq", &["x", "x"]).await;
    assert_eq!(all_hops(&rig, "in").await, counts(&[0, 1, 1]));
}

/// Rejects messages whose value is `bad`, and passes the others.
async fn picky(rig: &Rig, hops_max: Option<u32>) -> ProcessorSpec {
    let handler = per_message(|batch, message| match text(batch.value(message)).as_str() {
        "bad" => Say::Reject("bad"),
        _ => Say::Pass,
    });
    let module = rig.upload_handler("picky", handler).await;
    ProcessorSpec {
        hops_max,
        ..spec(module)
    }
}

#[tokio::test]
async fn a_cycle_through_dead_letters_is_refused_and_spelled_out_whoever_closes_it() {
    let rig = Rig::start(1).await;
    rig.deploy(picky(&rig, None).await).await;
    let again = passing(&rig, "in.p.dlq", "in", None).await;
    let deploy = async |name, spec| {
        rig.session
            .processors()
            .deploy(&processor(name), spec)
            .await
    };
    let refused = deploy("again", again.clone()).await.unwrap_err();
    let cycle = "again -> in -> p -> in.p.dlq -> again";
    assert!(refusal(&refused).contains(cycle), "{refused}");
    // A processor that only reads them closes no cycle.
    rig.topic("report", 1).await;
    deploy("look", passing(&rig, "in.p.dlq", "report", None).await)
        .await
        .unwrap();
    let counts = ProcessorSpec {
        hops_max: Some(3),
        ..again
    };
    deploy("again", counts).await.unwrap();
    // Nor may a processor stop counting hops, or be inserted into the cycle.
    let refused = deploy("again", passing(&rig, "in.p.dlq", "in", None).await).await;
    assert!(refusal(&refused.unwrap_err()).contains(cycle));
    rig.session
        .processors()
        .delete_processor(&processor("p"))
        .await
        .unwrap();
    deploy("again", passing(&rig, "in.p.dlq", "in", None).await)
        .await
        .unwrap();
    let refused = deploy("p", picky(&rig, None).await).await.unwrap_err();
    let cycle = "p -> in.p.dlq -> again -> in -> p";
    assert!(refusal(&refused).contains(cycle), "{refused}");
}

#[tokio::test]
async fn a_cycle_through_dead_letters_ends_after_its_hops_whoever_counts() {
    for (of_picky, of_again, rounds, letters) in [
        // `again` gives it up.
        (None, Some(3), 4, 4),
        // `p` gives it up, and drops it when it comes round once more.
        (Some(3), None, 5, 4),
        (Some(2), Some(9), 3, 2),
    ] {
        let rig = Rig::start(1).await;
        rig.deploy(picky(&rig, of_picky).await).await;
        let again = passing(&rig, "in.p.dlq", "in", of_again).await;
        rig.session
            .processors()
            .deploy(&processor("again"), again)
            .await
            .unwrap();
        rig.produce(&[("a", "bad"), ("b", "good")]).await;
        let came = async || {
            rig.values("in")
                .await
                .iter()
                .filter(|v| *v == "bad")
                .count()
        };
        let rests = async |name: &str| {
            let status = rig
                .session
                .processors()
                .processor(&processor(name))
                .await
                .unwrap();
            let mut partitions = status.partitions.iter();
            partitions.all(|one| one.lag == 0 && one.parked == 0)
        };
        for _ in 0..3_000 {
            if came().await >= rounds && rests("p").await && rests("again").await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        rig.settled().await;
        let told = format!("{of_picky:?} {of_again:?}");
        assert_eq!(came().await, rounds, "{told}");
        assert!(rests("p").await && rests("again").await, "{told}");
        assert_eq!(rig.values("in.p.dlq").await.len(), letters, "{told}");
        assert_eq!(rig.values("out").await, ["good"], "{told}");
        let spent = rig.letters().await.into_iter();
        let spent = spent.filter(|letter| letter.class == "hops").count();
        assert_eq!(spent, usize::from(of_again != Some(3)), "{told}");
    }
}

#[tokio::test]
async fn a_dead_letter_counts_as_an_output_does_and_sent_again_has_the_hops_it_came_with() {
    let rig = Rig::start(1).await;
    rig.deploy(picky(&rig, Some(2)).await).await;
    rig.produce(&[("a", "bad")]).await;
    rig.hold("in.p.dlq", &["bad"]).await;
    assert_eq!(all_hops(&rig, "in.p.dlq").await, counts(&[1]));
    for letters in 2..=3 {
        let all = RedriveRequest::all();
        rig.session
            .dead_letters()
            .redrive(&processor("p"), all)
            .await
            .unwrap();
        rig.hold("in.p.dlq", &vec!["bad"; letters]).await;
    }
    assert_eq!(all_hops(&rig, "in.p.dlq").await, counts(&[1, 1, 1]));
    assert_eq!(all_hops(&rig, "in.p.redrive").await, counts(&[0, 0]));
    for letter in rig.letters().await {
        assert_eq!(letter.class, "bad");
    }
}

#[tokio::test]
async fn the_first_call_is_marked_though_its_batch_was_cut_for_spent_messages() {
    let rig = Rig::start(1).await;
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(&message("k", "fresh").message);
    let mut spent = message("s", "spent").message;
    spent.headers.push(Header {
        name: "millrace-hops".into(),
        value: Some("9".into()),
    });
    builder.push(&spent);
    let partition = TopicPartition {
        topic: rig.session.catalogue().topic(&topic("in")).unwrap().id,
        partition: PartitionId(0),
    };
    let append = Append {
        partition,
        batch: builder.finish().unwrap(),
    };
    let (engine, marked) = (rig.engine(), Arc::new(AtomicBool::new(false)));
    engine
        .commit(Transaction::produce(vec![append]))
        .await
        .unwrap();
    let looks = (rig.engine(), Arc::clone(&marked));
    let handler = per_message(move |_, _| {
        let progress = looks
            .0
            .progress(&processor("p").group(), partition)
            .now_or_never();
        let progress = progress.expect("in memory").unwrap();
        let is_marked = progress.is_some_and(|progress| progress.first_call.is_some());
        looks.1.store(is_marked, Ordering::SeqCst);
        Say::Pass
    });
    let module = rig.upload_handler("m", handler).await;
    let mut spec = spec(module);
    spec.hops_max = Some(1);
    rig.deploy(spec).await;
    rig.settled().await;
    assert!(marked.load(Ordering::SeqCst));
    assert_eq!(rig.values("out").await, ["fresh"]);
    assert_eq!(rig.letters().await.len(), 1);
}
