//! Headers that begin with `millrace-`: those that the host set stay with the message, through
//! components and dead letters, and clients and components cannot set them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use millrace_broker::{
    CallError, DeadLetterFilter, DryRunRequest, HeaderFilter, LetterEdit, RedriveRequest,
};
use millrace_engine::{Append, Transaction};
use millrace_model::columns::OutcomeCode;
use millrace_model::{
    Answer, BatchBuilder, ColumnBatch, Header, Message, PartitionId, TopicPartition,
};

use crate::rig::{Rig, Say, message, per_message, processor, spec, text, topic, whole};
use crate::workplace::found;

fn header(name: &'static str, value: &'static str) -> Header {
    Header {
        name: name.into(),
        value: Some(value.into()),
    }
}

/// Produces a message to `in` as a schedule does.
async fn made_by_a_schedule(rig: &Rig) {
    let mut tick = message("k", "tick").message;
    tick.headers.push(header("millrace-schedule", "daily"));
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(&tick);
    let append = Append {
        partition: TopicPartition {
            topic: rig.session.catalogue().topic(&topic("in")).unwrap().id,
            partition: PartitionId(0),
        },
        batch: builder.finish().unwrap(),
    };
    let engine = rig.engine();
    let produced = engine.commit(Transaction::produce(vec![append]));
    produced.await.unwrap();
}

fn schedule_of(message: &Message) -> Option<String> {
    let mut headers = message.headers.iter();
    let found = headers.find(|header| header.name == "millrace-schedule")?;
    Some(text(found.value.as_deref()))
}

/// Emits the only message of a batch with its own headers and one more.
fn with_one_more(batch: &ColumnBatch, name: &str, value: &str) -> Result<Answer, CallError> {
    let own = batch.header_range(0);
    let mut headers = batch.headers[own.start * 4..own.end * 4].to_vec();
    let start = batch.data.len() as u32;
    let (name_bytes, value_bytes) = (name.len() as u32, value.len() as u32);
    headers.extend([start, name_bytes, start + name_bytes, value_bytes]);
    Ok(Answer {
        outcomes: vec![OutcomeCode::Emit as u8],
        sources: vec![0],
        data: [name, value].concat().into_bytes(),
        header_ends: vec![own.len() as u32 + 1],
        headers,
        ..Answer::default()
    })
}

#[tokio::test]
async fn a_component_that_copies_headers_carries_on_what_the_host_said() {
    let rig = Rig::start(1).await;
    let copies = whole(|batch| with_one_more(batch, "by", "me"));
    rig.deploy(spec(rig.upload_handler("copies", copies).await))
        .await;
    made_by_a_schedule(&rig).await;
    rig.hold("out", &["tick"]).await;
    let sent = rig.messages("out").await.remove(0);
    assert_eq!(schedule_of(&sent).as_deref(), Some("daily"));
    assert!(sent.headers.contains(&header("by", "me")));
}

#[tokio::test]
async fn a_component_that_says_something_in_the_host_s_name_is_not_believed() {
    for (name, value) in [
        ("millrace-origin-offset", "7"),
        ("millrace-schedule", "hourly"),
        ("millrace-", ""),
    ] {
        let rig = Rig::start(1).await;
        let forges = whole(move |batch| with_one_more(batch, name, value));
        rig.deploy(spec(rig.upload_handler("forges", forges).await))
            .await;
        made_by_a_schedule(&rig).await;
        rig.settled().await;
        assert_eq!(rig.messages("out").await, [], "{name}");
        let letter = rig.letters().await.remove(0);
        assert_eq!(letter.cause, "bad-answer");
        assert!(letter.reason.contains(name), "{}", letter.reason);
    }
}

#[tokio::test]
async fn a_dead_letter_keeps_what_the_host_said_however_it_is_found_tried_and_changed() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let rig = Rig::start(1).await;
    let asks = per_message(move |batch, message| {
        let mut headers = batch.headers(message);
        let told = headers.any(|(name, _)| name == b"millrace-schedule");
        match gate.load(Ordering::SeqCst) && told {
            true => Say::Pass,
            false => Say::Reject("no"),
        }
    });
    rig.deploy(spec(rig.upload_handler("asks", asks).await))
        .await;
    made_by_a_schedule(&rig).await;
    rig.settled().await;

    let by_schedule = |value: &'static str| DeadLetterFilter {
        header: Some(HeaderFilter {
            name: "millrace-schedule".into(),
            value: Some(Bytes::from(value)),
        }),
        ..DeadLetterFilter::default()
    };
    assert_eq!(found(&rig, by_schedule("hourly")).await.len(), 0);
    let letter = found(&rig, by_schedule("daily")).await.remove(0);

    open.store(true, Ordering::SeqCst);
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
    assert_eq!(run.outcomes[0].outcome, "ok", "it is shown to the revision");

    let edit = LetterEdit {
        value: Some(Some("mended".into())),
        ..LetterEdit::default()
    };
    let (name, place) = (processor("p"), letter.place());
    let edited = rig
        .session
        .dead_letters()
        .edit_and_redrive(&name, &place, edit);
    assert_eq!(edited.await.unwrap().sent, 1);
    rig.hold("out", &["mended"]).await;
    let sent = rig.messages("out").await.remove(0);
    assert_eq!(schedule_of(&sent).as_deref(), Some("daily"));
}
