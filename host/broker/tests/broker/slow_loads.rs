//! A slow load of a component: no other change waits for it, and a change is decided again if
//! something changed meanwhile.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use millrace_broker::{AdmitError, ModuleError, NextSpec, ProcessorError};
use millrace_engine::{CommitError, MemoryEngine};
use millrace_model::{Clock, Digest, Processor, ProcessorSpec, Trial};
use tokio::task::JoinHandle;

use crate::rig::{Export, Rig, Say, SetClock, SlowLoad, per_message, processor, spec, topic, trap};
use crate::two_hosts::{beside, until};

/// Time limit for changes that need no load.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.expect("it waits for the load")
}

fn slow() -> Arc<SlowLoad> {
    SlowLoad::of(per_message(|_, _| Say::Pass))
}

async fn upload(rig: &Rig, name: &str) -> Digest {
    rig.upload_handler(name, per_message(|_, _| Say::Pass))
        .await
}

/// Deploys processor `p`, and uploads a module that loads slowly.
async fn deployed() -> (Rig, Arc<SlowLoad>, Digest) {
    let rig = Rig::start(1).await;
    rig.deploy(spec(upload(&rig, "a").await)).await;
    let slow = slow();
    let module = rig.upload("slow", Export::Slow(Arc::clone(&slow))).await;
    (rig, slow, module)
}

type Deploying = JoinHandle<Result<Processor, ProcessorError>>;

fn deploying(rig: &Rig, spec: ProcessorSpec, expected: Option<u32>) -> Deploying {
    let session = rig.session.clone();
    let next = NextSpec::from(spec).expecting(expected);
    tokio::spawn(async move { session.processors().deploy(&processor("p"), next).await })
}

fn current(rig: &Rig) -> Option<u32> {
    let processor = rig.session.processors().deployed_as(&processor("p"));
    processor.map(|processor| processor.current)
}

#[tokio::test]
async fn a_slow_load_of_one_processor_keeps_no_other_change_waiting() {
    let (rig, slow, module) = deployed().await;
    let (p, q) = (processor("p"), processor("q"));
    let deploying = deploying(&rig, spec(module), None);
    slow.begins().await;
    let processors = rig.session.processors();
    let (a, b) = (upload(&rig, "a").await, upload(&rig, "b").await);
    soon(async {
        for module in [a, b] {
            processors.deploy(&q, spec(module)).await.unwrap();
        }
        let mut beside = spec(b);
        beside.limits.call_ms_max += 1;
        processors
            .deploy_canary(&q, beside.clone(), 10)
            .await
            .unwrap();
        processors.deploy_shadow(&q, beside).await.unwrap();
        processors.rollback(&q, None).await.unwrap();
        let back = processors.rollback(&q, Some(1)).await.unwrap();
        assert_eq!((back.current, back.trial), (1, None));
        processors.pause(&q).await.unwrap();
        processors.resume(&q, None).await.unwrap();
        processors.delete_processor(&q).await.unwrap();
        rig.topic("another", 1).await;
        let catalogue = rig.session.catalogue();
        catalogue
            .delete_topic(&topic("another"), false)
            .await
            .unwrap();
        // Changes of the loading processor that need no load do not wait either.
        processors.pause(&p).await.unwrap();
    })
    .await;
    assert_eq!(current(&rig), Some(1), "it is still loading");
    slow.end();
    let deployed = soon(deploying).await.unwrap().unwrap();
    assert_eq!(deployed.current, 2);
    assert!(deployed.paused, "what was done meanwhile stays done");
    // The processor has loaded its component once, although it is paused.
    assert_eq!(slow.held(), 1);
}

#[tokio::test]
async fn of_two_deployments_that_expect_the_same_revision_one_wins() {
    let (rig, first, one) = deployed().await;
    let second = slow();
    let other = rig
        .upload("slow, too", Export::Slow(Arc::clone(&second)))
        .await;
    let winner = deploying(&rig, spec(one), Some(1));
    let loser = deploying(&rig, spec(other), Some(1));
    first.begins().await;
    second.begins().await;
    first.end();
    assert_eq!(soon(winner).await.unwrap().unwrap().current, 2);
    second.end();
    let refused = soon(loser).await.unwrap().unwrap_err();
    let (expected, current) = match refused {
        ProcessorError::OtherRevision {
            expected, current, ..
        } => (expected, current),
        other => panic!("{other}"),
    };
    assert_eq!((expected, current), (1, 2));
    assert_eq!(second.held(), 0, "what was loaded is dropped");
    let known = rig.session.processors().deployed_as(&processor("p"));
    assert_eq!(known.unwrap().revisions.len(), 2);
}

#[tokio::test]
async fn two_deployments_that_expect_nothing_both_become_revisions() {
    let (rig, first, one) = deployed().await;
    let second = slow();
    let other = rig
        .upload("slow, too", Export::Slow(Arc::clone(&second)))
        .await;
    let (a, b) = (
        deploying(&rig, spec(one), None),
        deploying(&rig, spec(other), None),
    );
    first.begins().await;
    second.begins().await;
    first.end();
    assert_eq!(soon(a).await.unwrap().unwrap().current, 2);
    // The component was loaded as revision 2, which exists by now, so it is loaded again.
    second.end();
    soon(second.begins()).await;
    second.end();
    let deployed = soon(b).await.unwrap().unwrap();
    assert_eq!((deployed.current, deployed.revisions.len()), (3, 3));
    assert_eq!((first.held(), second.held()), (0, 1));
    rig.produce(&[("k", "v")]).await;
    rig.hold("out", &["v"]).await;
}

#[tokio::test]
async fn a_canary_begins_beside_whatever_is_current_when_it_is_loaded() {
    let (rig, slow, module) = deployed().await;
    let session = rig.session.clone();
    let trying = tokio::spawn(async move {
        let processors = session.processors();
        processors
            .deploy_canary(&processor("p"), spec(module), 30)
            .await
    });
    slow.begins().await;
    let b = upload(&rig, "b").await;
    rig.deploy(spec(b)).await;
    slow.end();
    soon(slow.begins()).await;
    slow.end();
    let tried = soon(trying).await.unwrap().unwrap();
    assert_eq!(tried.current, 2);
    let share = tried.trial.as_ref().and_then(Trial::percent);
    assert_eq!((tried.on_trial(), share), (Some(3), Some(30)));
}

#[tokio::test]
async fn a_processor_that_is_deleted_meanwhile_is_not_the_expected_one() {
    let (rig, slow, module) = deployed().await;
    let deploying = deploying(&rig, spec(module), Some(1));
    slow.begins().await;
    let processors = rig.session.processors();
    soon(processors.delete_processor(&processor("p")))
        .await
        .unwrap();
    slow.end();
    let refused = soon(deploying).await.unwrap().unwrap_err();
    assert!(
        matches!(refused, ProcessorError::OtherRevision { current: 0, .. }),
        "{refused}"
    );
    assert_eq!((current(&rig), slow.held()), (None, 0));
}

#[tokio::test]
async fn a_processor_that_is_deleted_meanwhile_is_made_anew_if_nothing_is_expected() {
    let (rig, slow, module) = deployed().await;
    let deploying = deploying(&rig, spec(module), None);
    slow.begins().await;
    let processors = rig.session.processors();
    soon(processors.delete_processor(&processor("p")))
        .await
        .unwrap();
    slow.end();
    // The component is loaded again, as the first revision.
    soon(slow.begins()).await;
    slow.end();
    let made = soon(deploying).await.unwrap().unwrap();
    assert_eq!((made.current, made.revisions.len()), (1, 1));
    rig.produce(&[("k", "v")]).await;
    rig.hold("out", &["v"]).await;
}

#[tokio::test]
async fn what_was_loaded_for_a_deleted_processor_is_not_for_one_of_the_same_name() {
    let clock = Arc::new(SetClock::default());
    let engine = MemoryEngine::new(Arc::clone(&clock) as Arc<dyn Clock>);
    let rig = Rig::by(Arc::clone(&clock) as _, engine, Arc::default()).await;
    rig.topic("in", 1).await;
    rig.topic("out", 1).await;
    rig.deploy(spec(upload(&rig, "a").await)).await;
    let slow = slow();
    let module = rig.upload("slow", Export::Slow(Arc::clone(&slow))).await;
    let deploying = deploying(&rig, spec(module), None);
    slow.begins().await;
    let processors = rig.session.processors();
    soon(processors.delete_processor(&processor("p")))
        .await
        .unwrap();
    clock.step(1_000);
    rig.deploy(spec(upload(&rig, "b").await)).await;
    slow.end();
    // The next revision of the new processor is 2 as well, but the component is loaded again.
    soon(slow.begins()).await;
    slow.end();
    let deployed = soon(deploying).await.unwrap().unwrap();
    assert_eq!((deployed.current, deployed.revisions.len()), (2, 2));
    assert_eq!(slow.held(), 1);
}

#[tokio::test]
async fn a_module_that_is_deleted_meanwhile_is_not_deployed() {
    let rig = Rig::start(1).await;
    let slow = slow();
    let module = rig.upload("slow", Export::Slow(Arc::clone(&slow))).await;
    let topics = rig.session.catalogue().topics();
    let deploying = deploying(&rig, spec(module), None);
    slow.begins().await;
    // No processor uses the module yet.
    soon(rig.session.catalogue().delete_module(module))
        .await
        .unwrap();
    slow.end();
    let refused = soon(deploying).await.unwrap().unwrap_err();
    assert!(
        matches!(refused, ProcessorError::UnknownModule(gone) if gone == module),
        "{refused}"
    );
    assert_eq!((current(&rig), slow.held()), (None, 0));
    assert_eq!(rig.session.catalogue().topics(), topics, "none of its own");
    // Once when the module was deleted, and once when its load ended.
    assert_eq!(*rig.modules.forgotten.lock(), [module, module]);
}

#[tokio::test]
async fn a_module_that_is_deleted_after_its_load_is_not_deployed_either() {
    let rig = Rig::start(1).await;
    let module = upload(&rig, "a").await;
    let slow = slow();
    let handler = rig.upload("slow", Export::Slow(Arc::clone(&slow))).await;
    let both = ProcessorSpec {
        error_handler: Some(handler),
        ..spec(module)
    };
    let deploying = deploying(&rig, both, None);
    // The handler's module is loaded by now.
    slow.begins().await;
    let catalogue = rig.session.catalogue();
    soon(catalogue.delete_module(module)).await.unwrap();
    slow.end();
    let refused = soon(deploying).await.unwrap().unwrap_err();
    assert!(
        matches!(refused, ProcessorError::UnknownModule(gone) if gone == module),
        "{refused}"
    );
    assert_eq!(current(&rig), None);
}

#[tokio::test]
async fn a_module_that_was_deployed_after_its_load_is_in_use() {
    let (rig, slow, module) = deployed().await;
    let deploying = deploying(&rig, spec(module), None);
    slow.begins().await;
    slow.end();
    soon(deploying).await.unwrap().unwrap();
    let refused = rig.session.catalogue().delete_module(module).await;
    assert!(matches!(refused, Err(ModuleError::InUse { .. })));
}

#[tokio::test]
async fn a_topic_that_is_deleted_meanwhile_is_not_read() {
    let rig = Rig::start(1).await;
    rig.topic("short-lived", 1).await;
    let slow = slow();
    let module = rig.upload("slow", Export::Slow(Arc::clone(&slow))).await;
    let reads = ProcessorSpec {
        topics: vec![topic("short-lived")],
        ..spec(module)
    };
    let deploying = deploying(&rig, reads, None);
    slow.begins().await;
    let catalogue = rig.session.catalogue();
    soon(catalogue.delete_topic(&topic("short-lived"), false))
        .await
        .unwrap();
    let topics = catalogue.topics();
    slow.end();
    let refused = soon(deploying).await.unwrap().unwrap_err();
    assert!(
        matches!(refused, ProcessorError::UnknownTopic(_)),
        "{refused}"
    );
    assert_eq!((current(&rig), slow.held()), (None, 0));
    assert_eq!(catalogue.topics(), topics, "none of its own");
}

#[tokio::test]
async fn a_deployment_that_always_comes_too_late_says_so_in_the_end() {
    let (rig, slow, module) = deployed().await;
    let mut late = deploying(&rig, spec(module), None);
    let others = [upload(&rig, "a").await, upload(&rig, "b").await];
    let mut loads = 0;
    let refused = loop {
        tokio::select! {
            done = &mut late => break done.unwrap().unwrap_err(),
            () = slow.begins() => {
                // Another deployment takes the revision's number.
                loads += 1;
                rig.deploy(spec(others[loads % 2])).await;
                slow.end();
            }
        }
    };
    assert!(
        matches!(refused, ProcessorError::Commit(CommitError::Conflict(_))),
        "{refused}"
    );
    let text = refused.to_string();
    assert!(text.contains("changed by someone else meanwhile"), "{text}");
    assert_eq!(loads, 16);
    assert_eq!((current(&rig), slow.held()), (Some(17), 0));
}

#[tokio::test]
async fn a_processor_resumes_while_its_component_loads_without_keeping_others_waiting() {
    let (rig, slow, _) = deployed().await;
    rig.modules.know("a", Export::Slow(Arc::clone(&slow)));
    let name = processor("p");
    let processors = rig.session.processors();
    processors.pause(&name).await.unwrap();
    let session = rig.session.clone();
    let resuming =
        tokio::spawn(async move { session.processors().resume(&processor("p"), None).await });
    slow.begins().await;
    let b = upload(&rig, "b").await;
    soon(processors.deploy(&processor("q"), spec(b)))
        .await
        .unwrap();
    slow.end();
    let resumed = soon(resuming).await.unwrap().unwrap();
    assert!(!resumed.paused);
}

#[tokio::test]
async fn a_canary_is_withdrawn_while_what_is_left_of_another_processor_loads() {
    let rig = Rig::start(1).await;
    let bad = rig.upload_handler("bad", per_message(|_, _| trap())).await;
    let processors = rig.session.processors();
    for (name, module) in [("p", "a"), ("q", "b")] {
        let mut well = spec(upload(&rig, module).await);
        well.retry.attempts_max = 1;
        let worse = ProcessorSpec {
            module: bad,
            ..well.clone()
        };
        let name = processor(name);
        processors.deploy(&name, well).await.unwrap();
        processors.deploy_canary(&name, worse, 90).await.unwrap();
    }
    rig.modules.know("a", Export::Stuck { at_upload: false });
    let values: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    let messages: Vec<(&str, &str)> = values.iter().map(|v| (&v[..], &v[..])).collect();
    rig.produce(&messages).await;
    let trial = |name| {
        let known = processors.deployed_as(&processor(name));
        known.unwrap().trial
    };
    let in_trouble = async {
        let status = processors.processor(&processor("p")).await.unwrap();
        status.canary.is_some_and(|canary| canary.trouble.is_some())
    };
    soon(async {
        while trial("q").is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(trial("p").is_some() && in_trouble.await);
}

#[tokio::test]
async fn a_stop_waits_for_a_load_that_ends_in_time() {
    let (rig, slow) = (Rig::start(1).await, slow());
    let module = rig.upload("slow", Export::Slow(Arc::clone(&slow))).await;
    let deploying = deploying(&rig, spec(module), None);
    slow.begins().await;
    let mut stop = pin!(rig.broker.wind_down(PATIENCE));
    let waits = poll_fn(|context| Poll::Ready(stop.as_mut().poll(context).is_pending()));
    assert!(waits.await, "there is nothing else to wait for");
    slow.end();
    soon(stop).await;
    assert_eq!(current(&rig), Some(1), "nothing changes any more");
    assert_eq!(soon(deploying).await.unwrap().unwrap().current, 1);
}

/// What another host deployed is known here and loads.
async fn heard() -> (Rig, Rig, Arc<SlowLoad>) {
    let (rig, slow, module) = deployed().await;
    let other = beside(&rig).await;
    let deployed = deploying(&rig, spec(module), None);
    slow.begins().await;
    slow.end();
    deployed.await.unwrap().unwrap();
    soon(slow.begins()).await;
    assert_eq!(current(&other), Some(2), "it is known while it loads");
    (rig, other, slow)
}

#[tokio::test]
async fn what_another_host_deployed_keeps_no_change_waiting_while_it_loads() {
    let (rig, other, slow) = heard().await;
    let (p, q) = (processor("p"), processor("q"));
    let module = upload(&other, "b").await;
    let processors = other.session.processors();
    soon(async {
        processors.deploy(&q, spec(module)).await.unwrap();
        processors.pause(&q).await.unwrap();
        processors.delete_processor(&q).await.unwrap();
        other.topic("another", 1).await;
        assert_eq!(processors.deployed_as(&p).unwrap().current, 2);
    })
    .await;
    slow.end();
    until("it runs here as well", async || slow.held() == 2).await;
    let values = rig.produce(&[("x", "1"), ("y", "2")]).await;
    until("one of them has processed it", async || {
        rig.values("out").await.len() == values.len()
    })
    .await;
}

#[tokio::test]
async fn what_is_heard_of_later_does_not_wait_for_a_slow_load() {
    let (rig, other, slow) = heard().await;
    let module = upload(&rig, "b").await;
    let q = processor("q");
    rig.session
        .processors()
        .deploy(&q, NextSpec::from(spec(module)))
        .await
        .unwrap();
    until("the other host starts it", async || {
        let starts = other.session.processors().processor(&q).await;
        let waits = |one: &millrace_broker::PartitionStatus| one.state.contains("being loaded");
        starts.is_some_and(|status| !status.partitions.iter().any(waits))
    })
    .await;
    assert_eq!(slow.held(), 1, "the slow one still loads");
    slow.end();
}

#[tokio::test]
async fn what_was_heard_of_and_cannot_be_loaded_for_a_passing_reason_is_loaded_later() {
    let (_rig, other, slow) = heard().await;
    let failed = || AdmitError::Host("too many open files".to_owned());
    *slow.load_errors.lock() = vec![failed(), failed()];
    for _ in 0..2 {
        slow.end();
        soon(slow.begins()).await;
    }
    let status = other.session.processors().processor(&processor("p")).await;
    let stopped = |one: &millrace_broker::PartitionStatus| one.state.starts_with("stopped");
    assert!(!status.unwrap().partitions.iter().any(stopped));
    slow.end();
    until("it runs here as well", async || slow.held() == 2).await;
}

#[tokio::test]
async fn a_processor_that_cannot_be_loaded_at_the_start_for_a_passing_reason_is_loaded_later() {
    let (rig, slow, module) = deployed().await;
    let deployed = deploying(&rig, spec(module), None);
    slow.begins().await;
    slow.end();
    deployed.await.unwrap().unwrap();
    *slow.load_errors.lock() = vec![AdmitError::Host("too many open files".to_owned())];
    // One load at the start, and one more.
    slow.end();
    slow.end();
    let other = soon(beside(&rig)).await;
    until("it runs here as well", async || slow.held() == 2).await;
    let status = other.session.processors().processor(&processor("p")).await;
    let stopped = |one: &millrace_broker::PartitionStatus| one.state.starts_with("stopped");
    assert!(!status.unwrap().partitions.iter().any(stopped));
}

#[tokio::test]
async fn what_was_heard_of_and_replaced_while_it_loaded_never_runs() {
    let (rig, other, slow) = heard().await;
    let module = upload(&rig, "b").await;
    soon(rig.deploy(spec(module))).await;
    until("the newest is known", async || current(&other) == Some(3)).await;
    slow.end();
    until("the newest runs alone", async || slow.held() == 0).await;
    let status = other.session.processors().processor(&processor("p")).await;
    let stopped = |one: &millrace_broker::PartitionStatus| one.state.starts_with("stopped");
    assert!(!status.unwrap().partitions.iter().any(stopped));
}

#[tokio::test]
async fn what_was_heard_of_and_deleted_while_it_loaded_stays_deleted() {
    let (rig, other, slow) = heard().await;
    let p = processor("p");
    soon(rig.session.processors().delete_processor(&p))
        .await
        .unwrap();
    until("it is gone here as well", async || {
        current(&other).is_none()
    })
    .await;
    slow.end();
    until("nobody keeps it", async || slow.held() == 0).await;
    assert!(other.session.processors().processor(&p).await.is_none());
}
