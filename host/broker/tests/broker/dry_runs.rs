//! Dry runs work like real runs, with the same bounds on a batch and the same checks of an answer.
//! Neither dry runs nor counts run for ever, and not many run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;

use millrace_broker::handler::BatchHandler;
use millrace_broker::{
    Broker, CallError, Caller, DeadLetterError, DeadLetterFilter, DryRun, DryRunRequest,
    RedriveRequest, RedriveWhich, Session,
};
use millrace_model::bounds::{DELAY_MS_MAX, DRY_RUNS_MAX};
use millrace_model::columns::{NO_TIME, OutcomeCode};
use millrace_model::{Answer, Clock, ColumnBatch, ProcessorSpec, SystemClock, Timestamp};
use tokio::sync::Semaphore;

use crate::rig::{Rig, processor, spec, whole};
use crate::workplace::{by_first_word, dead};

/// What a revision other than the current one would do with all messages, and the size in bytes of
/// the largest batch that it got.
async fn tried(rig: &Rig, change: impl FnOnce(ProcessorSpec) -> ProcessorSpec) -> (DryRun, usize) {
    let name = processor("p");
    let largest = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&largest);
    let handler = whole(move |batch| {
        seen.fetch_max(batch.data.len(), Ordering::SeqCst);
        Ok(far_away(batch))
    });
    let module = rig.upload_handler("other", handler).await;
    rig.session.processors().pause(&name).await.unwrap();
    rig.deploy(change(spec(module))).await;
    rig.session
        .processors()
        .rollback(&name, None)
        .await
        .unwrap();
    let request = DryRunRequest {
        which: RedriveRequest::all().which,
        revision: Some(2),
        letters_max: 1_000,
    };
    let run = rig
        .session
        .dead_letters()
        .dry_run(&name, request)
        .await
        .unwrap();
    (run, largest.load(Ordering::SeqCst))
}

/// An answer that delays everything for too long.
fn far_away(batch: &ColumnBatch) -> Answer {
    let count = batch.len();
    Answer {
        outcomes: vec![OutcomeCode::Emit as u8; count],
        sources: (0..count as u32).collect(),
        times: [NO_TIME, u64::from(u32::MAX) * 1_000 + 2 * DELAY_MS_MAX].repeat(count),
        ..Answer::default()
    }
}

#[tokio::test]
async fn an_output_that_would_be_delayed_too_long_fails_a_dry_run_as_it_would_fail_the_call() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 3).await;
    let (run, _) = tried(&rig, |spec| spec).await;
    assert_eq!((run.letters, run.outputs), (3, 0));
    let outcome = &run.outcomes[0];
    assert_eq!((outcome.outcome.as_str(), outcome.count), ("bad-answer", 3));
    assert!(
        outcome.reason.contains("time of delivery"),
        "{}",
        outcome.reason
    );
}

#[tokio::test]
async fn a_dry_run_gives_no_more_bytes_at_once_than_a_batch_may_have() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 40).await;
    let (run, largest) = tried(&rig, |mut spec| {
        spec.batch.bytes_max = 100;
        spec
    })
    .await;
    assert_eq!(run.letters, 40);
    assert!((1..=100).contains(&largest), "{largest} bytes");
}

/// A clock that advances by a minute with each reading.
struct Hurried(SystemClock, AtomicU64);

impl Clock for Hurried {
    fn wall(&self) -> Timestamp {
        self.0.wall()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(60 * self.1.fetch_add(1, Ordering::SeqCst))
    }

    fn thread(&self) -> Duration {
        self.0.thread()
    }
}

/// Another host on the same data, whose clock runs fast.
async fn in_a_hurry(rig: &Rig) -> Session {
    let clock = Arc::new(Hurried(SystemClock::new(), AtomicU64::new(0)));
    let broker = Broker::start(clock, rig.engine(), Arc::clone(&rig.modules) as _);
    broker.await.unwrap().session(Caller::unnamed())
}

#[tokio::test]
async fn counting_that_takes_long_says_where_to_count_on() {
    let (rig, _) = by_first_word(3).await;
    dead(&rig, 12).await;
    let session = in_a_hurry(&rig).await;
    let (name, filter) = (processor("p"), DeadLetterFilter::default());
    let (mut from, mut count, mut answers) = (None, 0, 0);
    loop {
        let groups = session
            .dead_letters()
            .dead_letter_groups(&name, &filter, from.as_ref(), 10);
        let groups = groups.await.unwrap();
        count += groups.count;
        answers += 1;
        from = groups.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!((count, answers), (12, 3), "one partition at a time");
}

#[tokio::test]
async fn a_dry_run_that_finds_few_of_many_says_where_to_go_on() {
    let (rig, _) = by_first_word(3).await;
    dead(&rig, 12).await;
    let session = in_a_hurry(&rig).await;
    let filter = DeadLetterFilter {
        class: Some("neither".to_owned()),
        ..DeadLetterFilter::default()
    };
    let request = DryRunRequest {
        which: RedriveWhich::Matching {
            filter: Box::new(filter),
            from: None,
        },
        revision: None,
        letters_max: 10,
    };
    let run = session
        .dead_letters()
        .dry_run(&processor("p"), request)
        .await
        .unwrap();
    assert_eq!(run.letters, 0);
    assert!(run.next.is_some());
}

/// Waits for permission to answer.
struct Waiting(Arc<Semaphore>);

#[async_trait]
impl BatchHandler for Waiting {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        let _turn = self.0.acquire().await;
        Ok(Answer {
            outcomes: vec![OutcomeCode::Ack as u8; batch.len()],
            ..Answer::default()
        })
    }
}

#[tokio::test]
async fn one_dry_run_too_many_is_refused_until_another_has_ended() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 1).await;
    let (name, turns) = (processor("p"), Arc::new(Semaphore::new(0)));
    let module = rig.upload_handler("waiting", Waiting(Arc::clone(&turns)));
    let waiting = spec(module.await);
    rig.session.processors().pause(&name).await.unwrap();
    rig.deploy(waiting).await;
    let request = DryRunRequest {
        which: RedriveRequest::all().which,
        revision: None,
        letters_max: 10,
    };
    let run = || rig.session.dead_letters().dry_run(&name, request.clone());
    let mut under_way: Vec<_> = (0..DRY_RUNS_MAX).map(|_| Box::pin(run())).collect();
    for run in &mut under_way {
        assert!(run.now_or_never().is_none());
    }
    assert!(matches!(run().await, Err(DeadLetterError::Busy)));
    turns.close();
    under_way.pop().unwrap().await.unwrap();
    run().await.unwrap();
}
