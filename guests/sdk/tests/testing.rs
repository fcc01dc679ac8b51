//! Tests of the test helper: its results are those of a host.

use std::cell::Cell;
use std::time::Duration;

use millrace_guest::testing::{Change, Said, Sent, Tester, Text};
use millrace_guest::{Answer, Message, NONE, Outcome, Outcomes, Sample, Unavailable, state};

fn said(message: &Message) -> Outcome {
    let reason = message.header("reason").unwrap_or(b"none");
    let reason = String::from_utf8_lossy(reason).into_owned();
    match message.value().unwrap_or_default() {
        b"ack" => Outcome::Ack,
        b"retry" => Outcome::retry("busy", reason),
        b"later" => Outcome::retry_after(Duration::from_secs(3), "busy", reason),
        b"reject" => Outcome::reject("bad", reason),
        b"nothing" => Outcome::EmitAll(Vec::new()),
        b"two" => Outcome::EmitAll(vec![
            message.output().topic("first").without_headers().value("1"),
            message.output().topic("second").partition(2).without_key(),
        ]),
        _ => Outcome::Emit(message.output().header("more", "yes")),
    }
}

#[test]
fn what_is_said_of_each_message_is_shown_as_it_is_meant() {
    let batch = ["ack", "retry", "later", "reject", "nothing", "two", "on"]
        .into_iter()
        .fold(Sample::new("in"), |batch, value| {
            batch.message("k", value).header("reason", value)
        });
    let run = Tester::new(said).run(batch);
    let two = vec![
        Sent::new("k", "1").to("first"),
        Sent::nullable(None, Some(b"two"))
            .to("second")
            .in_partition(2)
            .with_header("reason", "two"),
    ];
    let on = Sent::new("k", "on")
        .with_header("reason", "on")
        .with_header("more", "yes");
    let three = Duration::from_secs(3);
    let expected = [
        Said::Acked,
        Said::retried("busy", "retry"),
        Said::retried_after(three, "busy", "later"),
        Said::rejected("bad", "reject"),
        Said::Acked,
        Said::Sent(two.clone()),
        Said::Sent(vec![on.clone()]),
    ];
    assert_eq!(run.all(), expected);
    assert_eq!(run.outputs(), [&two[0], &two[1], &on]);
    assert_eq!(run.outputs_to("second"), [two[1].clone()]);
    assert_eq!(
        (run.said(3).class(), run.said(3).reason()),
        (Some("bad"), Some("reject"))
    );
    assert_eq!(
        (on.header("more"), on.header("none"), on.headers().len()),
        (Some("yes"), None, 2)
    );
    assert!(run.changes().is_empty());
}

#[test]
fn bytes_that_are_no_text_are_shown_and_compared_as_bytes() {
    let send = |message: &Message| Outcome::Emit(message.output().value([0xff, 0x00, b'a']));
    let run = Tester::new(send).run(Sample::new("in").nullable(None, None));
    let sent = run.output();
    assert_eq!(
        (sent.key(), sent.value_bytes()),
        (None, Some(&[0xff, 0x00, b'a'][..]))
    );
    assert!(format!("{sent:?}").contains(r#"b"\xff\x00a""#), "{sent:?}");
    assert_eq!(format!("{:?}", Text::from(&b"plain"[..])), r#""plain""#);
    let asked = std::panic::catch_unwind(|| sent.value().map(str::to_owned));
    assert!(asked.is_err(), "it is no text");
}

/// Counts, and then returns the outcome that its value names.
fn counting(message: &Message) -> Outcome {
    let key = message.key().unwrap_or_default();
    match state::add(message, key, 1) {
        Ok(count) if message.value() == Some(b"ok") => {
            Outcome::Emit(message.output().value(count.to_string()))
        }
        Ok(_) => Outcome::reject("bad", "not ok"),
        Err(full) => Outcome::retry("full", full.to_string()),
    }
}

fn batch(messages: &[(&str, &str)]) -> Sample {
    let messages = messages.iter();
    messages.fold(Sample::new("in"), |batch, (key, value)| {
        batch.message(key, value).header("is", key)
    })
}

#[test]
fn what_a_failed_message_wrote_is_taken_back_and_others_see_nothing_of_it() {
    let calls = Cell::new(0);
    let process = |message: &Message| {
        calls.set(calls.get() + 1);
        counting(message)
    };
    let mut tester = Tester::new(process).with_number("a", 10);
    let messages = [
        ("a", "ok"),
        ("a", "bad"),
        ("b", "ok"),
        ("a", "ok"),
        ("a", "bad"),
        ("b", "ok"),
    ];
    let run = tester.run(batch(&messages));
    let values: Vec<_> = run.outputs().iter().map(|sent| sent.value()).collect();
    assert_eq!(values, ["11", "1", "12", "2"].map(Some));
    assert_eq!(run.output_headers(), ["a", "b", "a", "b"]);
    assert_eq!(run.said(4), &Said::rejected("bad", "not ok"));
    assert_eq!(run.changes(), [("a", 12), ("b", 2)]);
    assert_eq!(calls.get(), 6 + 6, "once together, and once in parts");
    assert_eq!(tester.number("a"), Some(12));
    // If the failed message wrote nothing, one call is enough.
    calls.set(0);
    let quiet = |message: &Message| {
        calls.set(calls.get() + 1);
        match message.value() {
            Some(b"bad") => Outcome::reject("bad", "not ok"),
            _ => counting(message),
        }
    };
    let run = Tester::new(quiet).run(batch(&messages));
    assert_eq!((calls.get(), run.changes().len()), (6, 2));
}

trait Headers {
    fn output_headers(&self) -> Vec<&str>;
}

impl Headers for millrace_guest::testing::Run {
    fn output_headers(&self) -> Vec<&str> {
        let outputs = self.outputs().into_iter();
        outputs
            .map(|sent| sent.header("is").expect("it is kept"))
            .collect()
    }
}

#[test]
fn what_is_written_for_no_message_belongs_to_all_of_them() {
    let process = |batch: &millrace_guest::Batch, outcomes: &mut Outcomes| {
        let counts = state::Sums::of_keys(batch).add().unwrap();
        for (message, count) in batch.messages().zip(counts) {
            outcomes.push(match message.value() {
                Some(b"ok") => Outcome::Emit(message.output().value(count.to_string())),
                _ => Outcome::retry("bad", "not ok"),
            });
        }
    };
    let mut tester = Tester::of_batches(process);
    let run = tester.run(batch(&[("a", "ok"), ("a", "bad"), ("a", "ok")]));
    assert_eq!(run.changes(), [("a", 2)]);
    assert_eq!(run.said(1), &Said::retried("bad", "not ok"));
}

#[test]
fn state_is_the_testers_own_and_every_change_is_told() {
    let process = |message: &Message| {
        state::set_for(message, b"soon", b"gone", 500).unwrap();
        state::delete(message, b"old");
        state::set(message, b"same", b"as before").unwrap();
        assert_eq!(state::get(b"elsewhere"), None);
        Outcome::Ack
    };
    let sample = || Sample::new("in").message("k", "v");
    let batch = millrace_guest::Batch::new(sample().columns());
    state::set(&batch.message(0), b"elsewhere", b"kept").unwrap();
    let mut tester = Tester::new(process)
        .with_state("old", "value")
        .with_state("same", "as before");
    let run = tester.run(sample());
    let expected = [
        Change::removed("old"),
        Change::set("soon", "gone").ending_after_ms(500),
    ];
    assert_eq!(run.changes(), expected);
    assert_ne!(run.changes()[1], ("soon", "gone"), "it ends");
    let all: Vec<_> = tester.all_state().into_iter().map(|(key, _)| key).collect();
    assert_eq!(all, ["same", "soon"]);
    assert_eq!(tester.state("old"), None);
    assert_eq!(
        state::get(b"elsewhere").unwrap(),
        b"kept",
        "the thread's is put back"
    );
}

#[test]
fn a_handler_that_panics_leaves_the_threads_state_as_it_was() {
    let panics = |message: &Message| -> Outcome {
        state::set(message, b"half", b"done").unwrap();
        panic!("a trap");
    };
    let sample = || Sample::new("in").message("k", "v");
    let ended = std::panic::catch_unwind(|| Tester::new(panics).run(sample()));
    assert!(ended.is_err());
    assert_eq!(state::get(b"half"), None);
}

#[test]
fn a_batch_that_cannot_be_processed_now_is_given_back_and_changes_nothing() {
    let process = |message: &Message| {
        state::set(message, b"half", b"done").unwrap();
        match message.index() {
            1 => Err(Unavailable::new("the shop is closed")),
            _ => Ok(Outcome::Ack),
        }
    };
    let mut tester = Tester::new(process);
    let two = || Sample::new("in").message("k", "v").message("k", "v");
    let said = tester.try_run(two()).unwrap_err();
    assert_eq!(said.reason, "the shop is closed");
    assert_eq!(tester.all_state(), []);
    assert!(tester.try_run(Sample::new("in").message("k", "v")).is_ok());
}

/// An answer that a host refuses as a bad answer.
#[test]
fn an_answer_that_a_host_would_refuse_fails_the_test() {
    type Process = fn(millrace_guest::Columns) -> Result<Answer, Unavailable>;
    let cases: [(&str, Process); 6] = [
        ("0 outcomes for 1 messages", |_| Ok(Answer::default())),
        ("there is none of this number", |_| {
            Ok(Answer {
                outcomes: vec![9],
                ..Answer::default()
            })
        }),
        ("is not that it is sent on", |_| {
            Ok(Answer {
                outcomes: vec![0],
                sources: vec![0],
                ..Answer::default()
            })
        }),
        ("is sent on without an output", |_| {
            Ok(Answer {
                outcomes: vec![1],
                ..Answer::default()
            })
        }),
        ("comes from message 7 of 1", |_| {
            Ok(Answer {
                outcomes: vec![1],
                sources: vec![0, 7],
                ..Answer::default()
            })
        }),
        ("lies within its bytes", |_| {
            Ok(Answer {
                outcomes: vec![1],
                sources: vec![0],
                keys: vec![0, NONE],
                values: vec![0, 500],
                ..Answer::default()
            })
        }),
    ];
    for (rule, process) in cases {
        let sample = Sample::new("in").message("k", "v");
        let ended = std::panic::catch_unwind(|| Tester::of_columns(process).run(sample));
        let told = ended.expect_err(rule);
        let told = told.downcast_ref::<String>().cloned();
        let told = told.unwrap_or_default();
        assert!(told.contains(rule), "{rule}: {told}");
    }
}
