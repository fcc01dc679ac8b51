//! A shadow beside the current revision: what it reports, and that it changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use millrace_broker::handler::BatchHandler;
use millrace_broker::{CallError, ProcessorError, ShadowReport};
use millrace_engine::state::{KeyColumns, StateAttempt, WriteColumns};
use millrace_model::{Answer, ChangeKind, ColumnBatch, Processor, ProcessorSpec};

use crate::revisions::marker;
use crate::rig::{Rig, Say, per_message, processor, spec, text, trap, whole};

async fn shadow(rig: &Rig, spec: ProcessorSpec) -> Processor {
    let name = processor("p");
    rig.session
        .processors()
        .deploy_shadow(&name, spec)
        .await
        .unwrap()
}

/// The report, as soon as it meets the condition.
async fn report(rig: &Rig, what: impl Fn(&ShadowReport) -> bool) -> ShadowReport {
    let mut last = None;
    for _ in 0..5_000 {
        let report = rig
            .session
            .processors()
            .shadow_report(&processor("p"))
            .unwrap();
        if what(&report) {
            return report;
        }
        last = Some(report);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never came to that: {last:?}");
}

/// Produces a message for each number.
async fn produce(rig: &Rig, numbers: std::ops::Range<u32>) {
    let values: Vec<String> = numbers.map(|n| n.to_string()).collect();
    let messages: Vec<(&str, &str)> = values.iter().map(|v| (&v[..], &v[..])).collect();
    rig.produce(&messages).await;
}

fn number(batch: &ColumnBatch, message: usize) -> u32 {
    text(batch.value(message)).parse().unwrap()
}

#[tokio::test]
async fn a_shadow_reports_where_it_differs_and_nothing_of_it_counts() {
    let rig = Rig::start(1).await;
    let current = |batch: &ColumnBatch, message| match number(batch, message) % 10 {
        9 => Say::Reject("nine"),
        _ => Say::Pass,
    };
    let other = |batch: &ColumnBatch, message| match number(batch, message) % 10 {
        9 => Say::Reject("odd"),
        3 => Say::Reject("three"),
        5 => Say::Retry(None),
        7 => Say::Ack,
        _ => Say::Pass,
    };
    let a = rig.upload_handler("a", per_message(current)).await;
    let b = rig.upload_handler("b", per_message(other)).await;
    rig.deploy(spec(a)).await;
    let with_shadow = shadow(&rig, spec(b)).await;
    assert_eq!(with_shadow.current, 1);
    assert_eq!(with_shadow.trial.unwrap().revision(), 2);
    produce(&rig, 0..100).await;
    rig.settled().await;
    let report = report(&rig, |report| report.compared == 100).await;
    assert_eq!((report.revision, report.alike), (2, 60));
    let outcomes: Vec<(&str, u64)> = report.outcomes.iter().map(|(k, n)| (&k[..], *n)).collect();
    let wanted = [
        ("emit -> ack", 10),
        ("emit -> reject three", 10),
        ("emit -> retry busy", 10),
        ("reject nine -> reject odd", 10),
    ];
    assert_eq!(outcomes, wanted);
    assert_eq!(
        (report.outputs, report.skipped, report.not_answered),
        (0, 0, 0)
    );
    let sample = &report.samples[0];
    assert_eq!((sample.offset.0, sample.key.as_deref()), (3, Some("3")));
    assert_eq!(sample.current.outputs[0].value.as_deref(), Some("3"));
    assert_eq!(sample.current.outputs[0].headers, ["colour: red"]);
    assert_eq!(sample.shadow.reason.as_deref(), Some("said three"));
    assert_eq!(rig.values("out").await.len(), 90);
    assert_eq!(
        rig.letters().await.len(),
        10,
        "those of the current revision"
    );

    let promoted = rig
        .session
        .processors()
        .promote(&processor("p"))
        .await
        .unwrap();
    assert_eq!((promoted.current, promoted.trial), (2, None));
    let kinds: Vec<ChangeKind> = promoted.changes.iter().map(|change| change.what).collect();
    assert_eq!(
        kinds,
        [ChangeKind::Deploy, ChangeKind::Shadow, ChangeKind::Promote]
    );
    let gone = rig.session.processors().shadow_report(&processor("p"));
    assert!(matches!(gone, Err(ProcessorError::NoTrial(_))));
}

#[tokio::test]
async fn other_outputs_are_found_although_the_outcomes_are_the_same() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    shadow(&rig, spec(b)).await;
    produce(&rig, 0..300).await;
    let report = report(&rig, |report| report.compared == 300).await;
    assert_eq!(
        (report.outputs, report.alike, report.outcomes.len()),
        (300, 0, 0)
    );
    assert_eq!(report.samples.len(), 20, "few of one kind are enough");
    let sample = &report.samples[0];
    assert_eq!(sample.differs, "outputs");
    let value = |said: &millrace_broker::Said| said.outputs[0].value.clone().unwrap();
    assert_eq!(value(&sample.current), "0 by a");
    assert_eq!(value(&sample.shadow), "0 by b");
}

#[tokio::test]
async fn a_sample_says_when_it_does_not_show_all() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    shadow(&rig, spec(b)).await;
    let (key, value) = ("é".repeat(200), "é".repeat(20_000));
    rig.produce(&[("short", "1"), (&key, &value)]).await;
    let report = report(&rig, |report| report.compared == 2).await;
    let [whole, cut] = &report.samples[..] else {
        panic!("{report:?}");
    };
    assert!(!whole.key_lossy && !whole.current.outputs[0].lossy);
    assert!(cut.key_lossy && cut.current.outputs[0].lossy);
    for text in [&cut.key, &cut.current.outputs[0].value] {
        let text = text.as_deref().unwrap();
        assert!(text.ends_with("é…"), "cut after a whole character: {text}");
    }
}

#[tokio::test]
async fn one_message_that_takes_the_shadow_down_hides_no_other() {
    let rig = Rig::start(1).await;
    let a = rig.upload_handler("a", per_message(|_, _| Say::Pass)).await;
    let poison = |batch: &ColumnBatch, message| match number(batch, message) {
        333 => trap(),
        _ => Say::Pass,
    };
    let b = rig.upload_handler("b", per_message(poison)).await;
    rig.deploy(spec(a)).await;
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    shadow(&rig, spec(b)).await;
    produce(&rig, 0..1_000).await;
    rig.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    let report = report(&rig, |report| report.compared == 1_000).await;
    assert_eq!((report.alike, report.outcomes["emit -> trap"]), (999, 1));
    assert_eq!(report.samples[0].offset.0, 333);
    assert!(report.failed_calls["trap"] > 1);
}

#[tokio::test]
async fn a_shadow_that_fails_at_everything_changes_nothing_for_the_current_revision() {
    let flood = |batch: &ColumnBatch| {
        Ok(Answer {
            outcomes: vec![1; batch.len()],
            sources: (0..200_000).map(|n| n % batch.len() as u32).collect(),
            ..Answer::default()
        })
    };
    let rig = Rig::start(1).await;
    let a = rig.upload_handler("a", per_message(|_, _| Say::Pass)).await;
    let trapping = rig.upload_handler("t", per_message(|_, _| trap())).await;
    let looping = per_message(|_, _| Say::Fail(CallError::Timeout(Duration::from_secs(1))));
    let looping = rig.upload_handler("l", looping).await;
    let flooding = rig.upload_handler("f", whole(flood)).await;
    let down = per_message(|_, _| Say::Fail(CallError::Unavailable("down".to_owned())));
    let down = rig.upload_handler("d", down).await;
    rig.deploy(spec(a)).await;
    let mut sent = 0;
    for (module, cause) in [
        (trapping, "trap"),
        (looping, "timeout"),
        (flooding, "bad-answer"),
        (down, "unavailable"),
    ] {
        shadow(&rig, spec(module)).await;
        for _ in 0..20 {
            produce(&rig, sent..sent + 10).await;
            sent += 10;
            rig.until(|all| all[0].next.0 == u64::from(sent)).await;
        }
        let report = report(&rig, |report| report.failed_calls.contains_key(cause)).await;
        assert_eq!(report.alike, 0, "{cause}");
    }
    let values = rig.values("out").await;
    let wanted: Vec<String> = (0..sent).map(|n| n.to_string()).collect();
    assert_eq!(values, wanted);
    assert_eq!(rig.letters().await.len(), 0);
    let status = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    let breaker = status.breaker.unwrap();
    assert_eq!((&*breaker.state, breaker.trips), ("closed", 0));
    assert_eq!(status.partitions[0].parked, 0);
}

/// Never answers.
struct Stuck {
    uses_state: bool,
}

#[async_trait]
impl BatchHandler for Stuck {
    async fn process(&self, _: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        std::future::pending().await
    }

    fn uses_state(&self) -> bool {
        self.uses_state
    }

    async fn process_with_state(
        &self,
        _: &Arc<ColumnBatch>,
        _: Box<StateAttempt>,
    ) -> Result<(Answer, Box<StateAttempt>), CallError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn nobody_waits_for_a_shadow_that_does_not_answer() {
    for uses_state in [false, true] {
        let rig = Rig::start(1).await;
        let a = rig.upload_handler("a", per_message(|_, _| Say::Pass)).await;
        let stuck = rig.upload_handler("s", Stuck { uses_state }).await;
        rig.deploy(spec(a)).await;
        shadow(&rig, spec(stuck)).await;
        for round in 0..50 {
            produce(&rig, round..round + 1).await;
            rig.until(|all| all[0].next.0 == u64::from(round) + 1).await;
        }
        let report = report(&rig, |report| report.skipped >= 40).await;
        assert_eq!(report.compared, 0);
        rig.session
            .processors()
            .rollback(&processor("p"), None)
            .await
            .unwrap();
        produce(&rig, 50..51).await;
        rig.settled().await;
        assert_eq!(rig.values("out").await.len(), 51);
        rig.broker.stop().await;
    }
}

/// Adds the message's number to the state of its key, and emits the sum.
struct Summing {
    times: i64,
    late: Arc<AtomicBool>,
}

#[async_trait]
impl BatchHandler for Summing {
    async fn process(&self, _: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        Err(CallError::Host("it has state".to_owned()))
    }

    fn uses_state(&self) -> bool {
        true
    }

    async fn process_with_state(
        &self,
        batch: &Arc<ColumnBatch>,
        mut state: Box<StateAttempt>,
    ) -> Result<(Answer, Box<StateAttempt>), CallError> {
        let mut answer = Answer::default();
        for message in 0..batch.len() {
            let key = b"sum";
            let keys = KeyColumns {
                data: key,
                spans: &[0, key.len() as u32],
            };
            let how = WriteColumns {
                ttl_ms: &[],
                messages: &[message as u32],
            };
            let delta = i64::from(number(batch, message)) * self.times;
            let sum = state.add(&keys, &[delta], &how).unwrap()[0];
            let start = (batch.data.len() + answer.data.len()) as u32;
            let value = sum.to_string();
            answer.data.extend(value.as_bytes());
            answer.values.extend([start, value.len() as u32]);
            answer.sources.push(message as u32);
            answer.outcomes.push(1);
        }
        if self.late.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        Ok((answer, state))
    }
}

#[tokio::test]
async fn a_shadow_with_state_sees_the_state_that_the_current_revision_saw_and_writes_none() {
    let rig = Rig::start(1).await;
    let late = Arc::new(AtomicBool::new(false));
    let never = Arc::default();
    let summing = |times, late: &Arc<AtomicBool>| Summing {
        times,
        late: Arc::clone(late),
    };
    let a = rig.upload_handler("a", summing(1, &never)).await;
    let same = rig.upload_handler("same", summing(1, &late)).await;
    let twice = rig.upload_handler("twice", summing(2, &never)).await;
    rig.deploy(spec(a)).await;
    shadow(&rig, spec(same)).await;
    let mut sum = 0;
    for n in 1..=30 {
        produce(&rig, n..n + 1).await;
        rig.until(|all| all[0].next.0 == u64::from(n)).await;
        sum += n;
    }
    let seen = report(&rig, |report| report.compared + report.skipped == 30).await;
    assert_eq!(seen.alike, seen.compared);
    assert!(seen.compared > 0, "{seen:?}");
    shadow(&rig, spec(twice)).await;
    for n in 31..=40 {
        produce(&rig, n..n + 1).await;
        rig.until(|all| all[0].next.0 == u64::from(n)).await;
        sum += n;
    }
    let seen = report(&rig, |report| report.compared + report.skipped == 10).await;
    assert_eq!(seen.outputs, seen.compared);
    assert!(seen.compared > 0, "{seen:?}");
    // A shadow that is too late delays nothing.
    late.store(true, Ordering::SeqCst);
    shadow(&rig, spec(same)).await;
    for n in 41..=60 {
        produce(&rig, n..n + 1).await;
        rig.until(|all| all[0].next.0 == u64::from(n)).await;
        sum += n;
    }
    report(&rig, |report| report.skipped == 20).await;
    assert_eq!(rig.values("out").await.last(), Some(&sum.to_string()));
    assert_eq!(rig.values("out").await.len(), 60);
}

#[tokio::test]
async fn a_shadow_stays_over_a_start_with_a_new_report_and_ends_when_told() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    shadow(&rig, spec(b)).await;
    produce(&rig, 0..10).await;
    report(&rig, |report| report.compared == 10).await;
    let next = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    produce(&next, 10..13).await;
    report(&next, |report| report.compared == 3).await;
    let name = processor("p");
    let again = shadow(&next, spec(b)).await;
    assert_eq!(
        again.revisions.len(),
        2,
        "the same shadow again is the same"
    );
    let ended = next.session.processors().end_shadow(&name).await.unwrap();
    assert_eq!((ended.current, ended.trial), (1, None));
    let refused = next.session.processors().end_shadow(&name).await;
    assert!(matches!(refused, Err(ProcessorError::NoTrial(_))));
    // Tried again, it is another revision; and it can become a canary without a new revision.
    shadow(&next, spec(b)).await;
    let canary = next
        .session
        .processors()
        .deploy_canary(&name, spec(b), 50)
        .await
        .unwrap();
    assert_eq!(canary.revisions.len(), 3);
    let trial = canary.trial.unwrap();
    assert_eq!((trial.revision(), trial.percent()), (3, Some(50)));
}
