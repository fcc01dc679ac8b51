//! Guests that never answer block nothing: a call whose answer can no longer count is interrupted,
//! and that is not counted against its messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use millrace_broker::handler::{BatchHandler, Decision, Failure, FailureHandler, PartitionHandler};
use millrace_broker::{
    AdmitError, CallError, DryRunRequest, ModuleError, NewTopic, ProcessorError, ProduceError,
    RedriveRequest, ReplayRequest,
};
use millrace_model::{Answer, ColumnBatch, Durability, Timestamp};

use crate::rig::{Export, Rig, Say, message, per_message, processor, spec, topic, trap};

/// Never answers; counts the calls under way, and all calls.
#[derive(Clone, Default)]
struct Endless {
    under_way: Arc<AtomicUsize>,
    begun: Arc<AtomicUsize>,
}

struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Endless {
    async fn go_on<T>(&self) -> T {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        let _under_way = UnderWay(Arc::clone(&self.under_way));
        std::future::pending().await
    }

    async fn are_under_way(&self, calls: usize) {
        for _ in 0..5_000 {
            if self.under_way.load(Ordering::SeqCst) == calls {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!(
            "{} calls, not {calls}",
            self.under_way.load(Ordering::SeqCst)
        );
    }
}

#[async_trait]
impl BatchHandler for Endless {
    async fn process(&self, _: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        self.go_on().await
    }
}

#[async_trait]
impl FailureHandler for Endless {
    async fn handle(
        &self,
        _: &[Failure],
        _: &Arc<ColumnBatch>,
    ) -> Result<Vec<Decision>, CallError> {
        self.go_on().await
    }
}

#[async_trait]
impl PartitionHandler for Endless {
    async fn assign(&self, _: u32, _: &Arc<ColumnBatch>) -> Result<Vec<u32>, CallError> {
        self.go_on().await
    }
}

const SLACK: Duration = Duration::from_secs(1);

/// Fails unless the work ends within `time`, plus a second for a busy machine.
async fn within<T>(time: Duration, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(time + SLACK, work).await;
    done.unwrap_or_else(|_| panic!("not within {time:?}"))
}

async fn nothing_counts(rig: &Rig) {
    let partition = rig.session.catalogue().topic(&topic("in")).unwrap();
    let partition = partition.partitions().next().unwrap();
    let progress = rig
        .engine()
        .progress(&processor("p").group(), partition)
        .await
        .unwrap();
    let progress = progress.unwrap_or_default();
    assert_eq!((progress.next.0, progress.parked.len()), (0, 0));
    assert_eq!(progress.first_call, None, "no message is suspected");
    assert_eq!(rig.values("in.p.dlq").await, [] as [&str; 0]);
    assert_eq!(rig.values("out").await, [] as [&str; 0]);
}

async fn endless() -> (Rig, Endless) {
    let (rig, endless) = (Rig::start(1).await, Endless::default());
    let module = rig.upload_handler("endless", endless.clone()).await;
    rig.deploy(spec(module)).await;
    (rig, endless)
}

const GRACE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_stop_has_patience_with_calls_and_then_interrupts_them_and_nothing_of_them_counts() {
    let (rig, endless) = endless().await;
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    endless.are_under_way(1).await;
    let before = Instant::now();
    within(GRACE, rig.broker.wind_down(GRACE)).await;
    assert!(before.elapsed() >= GRACE, "calls have time to end");
    endless.are_under_way(0).await;
    assert_eq!(
        endless.begun.load(Ordering::SeqCst),
        1,
        "nothing is bisected"
    );
    nothing_counts(&rig).await;
}

/// Passes everything on after a delay.
struct Slow;

#[async_trait]
impl BatchHandler for Slow {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        per_message(|_, _| Say::Pass).process(batch).await
    }
}

#[tokio::test]
async fn a_call_that_ends_in_time_counts_at_a_stop() {
    let rig = Rig::start(1).await;
    rig.deploy(spec(rig.upload_handler("slow", Slow).await))
        .await;
    rig.produce(&[("a", "1")]).await;
    rig.until(|all| all.iter().any(|one| one.calling_ms.is_some()))
        .await;
    rig.broker.wind_down(Duration::from_secs(30)).await;
    assert_eq!(rig.values("out").await, ["1"]);
}

#[tokio::test]
async fn error_handlers_and_partitioners_are_interrupted_as_well() {
    // The error handler is endless.
    let (rig, endless) = (Rig::start(1).await, Endless::default());
    let fails = per_message(|_, _| Say::Retry(None));
    let mut with_handler = spec(rig.upload_handler("fails", fails).await);
    let handler = Export::ErrorHandler(Arc::new(endless.clone()));
    with_handler.error_handler = Some(rig.upload("endless", handler).await);
    rig.deploy(with_handler).await;
    rig.produce(&[("a", "1")]).await;
    endless.are_under_way(1).await;
    within(GRACE, rig.broker.wind_down(GRACE)).await;
    endless.are_under_way(0).await;
    nothing_counts(&rig).await;

    // The topic's partitioner is endless, for a producer and for a processor's outputs.
    let (rig, endless) = (Rig::start(1).await, Endless::default());
    let partitioner = Export::Partitioner(Arc::new(endless.clone()));
    let partitioner = rig.upload("endless", partitioner).await;
    let new = NewTopic {
        name: topic("spread"),
        partitions: 2,
        durability: Durability::Os,
        partitioner: Some(partitioner),
        settings: Default::default(),
    };
    rig.session.catalogue().create_topic(new).await.unwrap();
    let passes = per_message(|_, _| Say::Pass);
    let mut into = spec(rig.upload_handler("passes", passes).await);
    into.output = Some(topic("spread"));
    rig.deploy(into).await;
    rig.produce(&[("a", "1")]).await;
    let session = rig.session.clone();
    let producing = tokio::spawn(async move {
        session
            .messages()
            .produce(&topic("spread"), vec![message("k", "v")])
            .await
    });
    endless.are_under_way(2).await;
    within(GRACE, rig.broker.wind_down(GRACE)).await;
    let produced = within(GRACE, producing).await.unwrap();
    assert!(matches!(
        produced,
        Err(ProduceError::Partitioner(CallError::Interrupted))
    ));
    endless.are_under_way(0).await;
    nothing_counts(&rig).await;
}

#[tokio::test]
async fn canaries_shadows_replays_and_dry_runs_are_interrupted_as_well() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Reject("no")).await;
    let name = processor("p");
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    rig.settled().await;

    let dry_run = Endless::default();
    let tried = rig.upload_handler("tried", dry_run.clone()).await;
    rig.session.processors().pause(&name).await.unwrap();
    rig.deploy(spec(tried)).await;
    rig.session
        .processors()
        .rollback(&name, None)
        .await
        .unwrap();
    rig.session.processors().resume(&name, None).await.unwrap();
    let request = DryRunRequest {
        which: RedriveRequest::all().which,
        revision: Some(2),
        letters_max: 10,
    };
    let session = rig.session.clone();
    let trying = tokio::spawn(async move {
        session
            .dead_letters()
            .dry_run(&processor("p"), request)
            .await
    });
    dry_run.are_under_way(1).await;

    let into = ReplayRequest {
        revision: Some(2),
        from: Timestamp(0),
        until: Timestamp(u64::MAX),
        into: topic("out"),
        name: None,
    };
    rig.session.processors().replay(&name, into).await.unwrap();
    dry_run.are_under_way(2).await;

    let shadow = Endless::default();
    let shadowing = spec(rig.upload_handler("shadow", shadow.clone()).await);
    rig.session
        .processors()
        .deploy_shadow(&name, shadowing)
        .await
        .unwrap();
    rig.produce(&[("a", "3")]).await;
    shadow.are_under_way(1).await;
    // Ending a shadow ends its call.
    rig.session.processors().end_shadow(&name).await.unwrap();
    within(GRACE, shadow.are_under_way(0)).await;

    let canary = Endless::default();
    let trial = spec(rig.upload_handler("canary", canary.clone()).await);
    rig.session
        .processors()
        .deploy_canary(&name, trial, 99)
        .await
        .unwrap();
    let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|n| (n.as_str(), "c")).collect();
    rig.produce(&many).await;
    canary.are_under_way(1).await;

    within(GRACE, rig.broker.wind_down(GRACE)).await;
    let tried = within(GRACE, trying).await.unwrap().unwrap();
    assert!(tried.stopped.is_some() && tried.next.is_some());
    dry_run.are_under_way(0).await;
    canary.are_under_way(0).await;
}

#[tokio::test]
async fn deleting_a_processor_and_emptying_its_state_wait_a_second_for_its_call_and_no_longer() {
    const WAIT: Duration = Duration::from_secs(1);
    let name = processor("p");
    for reset in [false, true] {
        let (rig, endless) = endless().await;
        rig.produce(&[("a", "1")]).await;
        endless.are_under_way(1).await;
        match reset {
            false => within(WAIT, rig.session.processors().delete_processor(&name)).await,
            true => {
                within(
                    WAIT,
                    rig.session.processors().delete_processor_and_state(&name),
                )
                .await
            }
        }
        .unwrap();
        endless.are_under_way(0).await;
        nothing_counts(&rig).await;
    }
    let (rig, endless) = endless().await;
    rig.produce(&[("a", "1")]).await;
    endless.are_under_way(1).await;
    let repaired = spec(
        rig.upload_handler("ok", per_message(|_, _| Say::Pass))
            .await,
    );
    let deployed = rig
        .session
        .processors()
        .deploy_and_reset_state(&name, repaired);
    within(WAIT, deployed).await.unwrap();
    endless.are_under_way(0).await;
    rig.hold("out", &["1"]).await;
}

#[tokio::test]
async fn a_revision_that_hangs_is_replaced_and_its_messages_are_the_next_ones_at_their_first_attempt()
 {
    for back in [false, true] {
        let rig = Rig::start(1).await;
        let name = processor("p");
        let first = per_message(|batch, message| {
            assert_eq!(batch.attempts[message], 1);
            Say::Pass
        });
        let first = spec(rig.upload_handler("ok", first).await);
        let endless = Endless::default();
        let hangs = spec(rig.upload_handler("endless", endless.clone()).await);
        if back {
            rig.deploy(first.clone()).await;
        }
        rig.deploy(hangs).await;
        rig.produce(&[("a", "1"), ("b", "2")]).await;
        endless.are_under_way(1).await;
        match back {
            true => drop(
                rig.session
                    .processors()
                    .rollback(&name, None)
                    .await
                    .unwrap(),
            ),
            false => rig.deploy(first).await,
        }
        rig.hold("out", &["1", "2"]).await;
        endless.are_under_way(0).await;
        assert_eq!(rig.letters().await.len(), 0);
        let status = rig.session.processors().processor(&name).await.unwrap();
        assert_eq!(status.breaker.unwrap().trips, 0);
    }
}

#[tokio::test]
async fn an_input_that_is_no_longer_read_holds_up_no_deployment() {
    let (rig, endless) = endless().await;
    rig.topic("other", 1).await;
    rig.produce(&[("a", "1")]).await;
    endless.are_under_way(1).await;
    let mut elsewhere = spec(
        rig.upload_handler("traps", per_message(|_, _| trap()))
            .await,
    );
    elsewhere.topics = vec![topic("other")];
    let name = processor("p");
    let deployed = rig.session.processors().deploy(&name, elsewhere);
    within(Duration::from_secs(5), deployed).await.unwrap();
    endless.are_under_way(0).await;
    nothing_counts(&rig).await;
}

#[tokio::test]
async fn an_upload_and_a_deployment_that_never_end_are_answered_at_a_stop() {
    let rig = Rig::start(1).await;
    let stuck = rig.upload("stuck", Export::Stuck { at_upload: false });
    let stuck = spec(stuck.await);
    let session = rig.session.clone();
    let deploying =
        tokio::spawn(async move { session.processors().deploy(&processor("p"), stuck).await });
    rig.modules.know("worse", Export::Stuck { at_upload: true });
    let session = rig.session.clone();
    let uploading = tokio::spawn(async move {
        session
            .catalogue()
            .upload_module("worse".into(), None)
            .await
    });
    // Other changes wait behind the deployment.
    let session = rig.session.clone();
    let name = processor("p");
    let deleting = tokio::spawn(async move { session.processors().delete_processor(&name).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    within(GRACE, rig.broker.wind_down(GRACE)).await;
    let deployed = within(GRACE, deploying).await.unwrap();
    let stopping = |error: &AdmitError| *error == AdmitError::Stopping;
    assert!(matches!(deployed, Err(ProcessorError::Admit(error)) if stopping(&error)));
    let uploaded = within(GRACE, uploading).await.unwrap();
    assert!(matches!(uploaded, Err(ModuleError::Admit(error)) if stopping(&error)));
    assert!(within(GRACE, deleting).await.unwrap().is_err());
    within(GRACE, rig.broker.stop()).await;
}
