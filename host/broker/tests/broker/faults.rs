//! A faulty engine: the memory engine, except for the operations that a test makes it refuse.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use millrace_broker::handler::BatchHandler;
use millrace_broker::{Broker, Caller, ProduceError};
use millrace_engine::hooked::{Hooked, Hooks};
use millrace_engine::{
    CommitError, Engine, Hold, Limits, MemoryEngine, ProgressWrite, ReadError, Receipt, Transaction,
};
use millrace_model::bounds::PARKED_MESSAGES_MAX;
use millrace_model::processor::Order;
use millrace_model::{
    Clock, GroupName, Offset, PartitionId, ProcessorSpec, Progress, SystemClock, TopicId,
    TopicPartition,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::rig::{Modules, Rig, Say, message, per_message, processor, spec, text, topic};
use crate::schedules;
use crate::states::{change, counting, number, place, write};

struct Moody {
    engine: Arc<MemoryEngine>,
    /// The error of commits of progress, and of deliveries of delayed messages.
    refusal: Mutex<Option<CommitError>>,
    refused: AtomicUsize,
    /// The limit that it reports for one transaction.
    bytes_max: AtomicUsize,
    /// The error of claims and, if the engine has failed, of reading progress, too.
    claims: Mutex<Option<CommitError>>,
    /// Commits of produce calls wait for a permit.
    gate: Semaphore,
    /// Whether it does not answer when it is asked what others have changed.
    is_silent: AtomicBool,
    /// Which commit panics.
    mistake: Mutex<Option<Mistake>>,
}

/// A commit to that topic panics, before or after it takes effect.
#[derive(Clone, Copy)]
enum Mistake {
    Before(TopicId),
    After(TopicId),
}

#[async_trait]
impl Hooks for Moody {
    fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        let mistake = *self.mistake.lock();
        let is_for = |topic| {
            transaction
                .appends
                .iter()
                .any(|a| a.partition.topic == topic)
        };
        match mistake {
            Some(Mistake::Before(topic)) if is_for(topic) => panic!("a mistake that is meant"),
            Some(Mistake::After(topic)) if is_for(topic) => {
                self.engine.commit(transaction).await?;
                panic!("a mistake that is meant");
            }
            _ => {}
        }
        let delivers = !transaction.appends.is_empty() && !transaction.state.is_empty();
        if !transaction.progress.is_empty() || delivers {
            let refusal = self.refusal.lock().clone();
            let refusal = refusal.filter(|refusal| match refusal {
                CommitError::TooLarge { max, .. } => transaction.byte_count() > *max,
                _ => true,
            });
            if let Some(error) = refusal {
                self.refused.fetch_add(1, Ordering::SeqCst);
                return Err(error);
            }
        } else if !transaction.appends.is_empty() {
            let permit = self.gate.acquire().await.map_err(|_| CommitError::Closed)?;
            drop(permit);
        }
        self.engine.commit(transaction).await
    }

    fn limits(&self) -> Limits {
        Limits {
            transaction_bytes_max: self.bytes_max.load(Ordering::SeqCst),
        }
    }

    async fn hear(&self) -> Result<(), ReadError> {
        if self.is_silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.engine.hear().await
    }

    async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError> {
        if let Some(error) = self.claims.lock().clone() {
            return Err(error);
        }
        self.engine.claim(group, partition).await
    }

    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError> {
        if let Some(error) = self.claims.lock().clone() {
            return Err(error);
        }
        self.engine.hold(group, partition).await
    }

    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        if let Some(CommitError::Poisoned(reason)) = &*self.claims.lock() {
            return Err(ReadError::Io(reason.to_string().into()));
        }
        self.engine.progress(group, partition).await
    }
}

/// A rig on a faulty engine, with processor `p` from `in` to `out`.
async fn moody(say: impl Fn(&str, u32) -> Say + Send + Sync + 'static) -> (Rig, Arc<Moody>) {
    moody_with(per_message(move |batch, message| {
        say(&text(batch.value(message)), batch.attempts[message])
    }))
    .await
}

async fn moody_with(handler: impl BatchHandler) -> (Rig, Arc<Moody>) {
    let clock = Arc::new(SystemClock::new());
    let memory = MemoryEngine::new(clock.clone());
    let moody = Arc::new(Moody {
        engine: Arc::clone(&memory),
        refusal: Mutex::default(),
        refused: AtomicUsize::default(),
        bytes_max: AtomicUsize::new(usize::MAX),
        claims: Mutex::default(),
        gate: Semaphore::new(1_000),
        is_silent: AtomicBool::new(false),
        mistake: Mutex::default(),
    });
    let modules = Arc::new(Modules::default());
    let engine = Arc::new(Hooked(Arc::clone(&moody)));
    let host = Arc::clone(&modules);
    let broker = Broker::start(clock, engine, host).await.unwrap();
    let rig = Rig {
        session: broker.session(Caller::unnamed()),
        broker,
        engine: memory,
        modules,
    };
    rig.topic("in", 1).await;
    rig.topic("out", 1).await;
    let module = rig.upload_handler("m", handler).await;
    rig.deploy(spec(module)).await;
    (rig, moody)
}

#[tokio::test]
async fn what_a_store_that_does_not_answer_has_to_say_is_not_waited_for() {
    let (rig, engine) = moody(|_, _| Say::Pass).await;
    engine.is_silent.store(true, Ordering::SeqCst);
    let decided = async {
        rig.topic("another", 1).await;
        let messages = rig.session.messages();
        let none = topic("none");
        let missing = messages.produce(&none, vec![message("k", "v")]).await;
        assert!(matches!(missing, Err(ProduceError::UnknownTopic(_))));
    };
    let decided = tokio::time::timeout(Duration::from_secs(60), decided).await;
    decided.expect("it goes on with what it knows");
}

#[tokio::test]
async fn a_full_disk_is_waited_out_and_everything_happens_once() {
    let (rig, engine) = moody(|value, attempt| match (value, attempt) {
        ("again", 1) => Say::Retry(Some(1)),
        ("dead", _) => Say::Reject("no"),
        _ => Say::Pass,
    })
    .await;
    *engine.refusal.lock() = Some(CommitError::DiskFull);
    rig.produce(&[("a", "1"), ("b", "again"), ("c", "dead")])
        .await;
    rig.until(|all| all[0].state.starts_with("waiting: the disk is full"))
        .await;
    while engine.refused.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    *engine.refusal.lock() = None;
    rig.hold("out", &["1", "again"]).await;
    rig.hold("in.p.dlq", &["dead"]).await;
    rig.settled().await;
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_written_stops_the_partition_and_is_not_lost() {
    let (rig, engine) = moody(|value, _| match value {
        "dead" => Say::Reject("no"),
        _ => Say::Pass,
    })
    .await;
    *engine.refusal.lock() = Some(CommitError::DiskFull);
    rig.produce(&[("a", "dead")]).await;
    rig.until(|all| all[0].state.starts_with("waiting: the disk is full"))
        .await;
    rig.produce(&[("b", "behind")]).await;
    let standing = rig.until(|all| all[0].lag == 2).await;
    assert_eq!(standing[0].next, Offset(0));
    assert_eq!(rig.messages("in.p.dlq").await, []);
    assert_eq!(rig.messages("out").await, []);
    *engine.refusal.lock() = None;
    rig.hold("in.p.dlq", &["dead"]).await;
    rig.hold("out", &["behind"]).await;
    rig.settled().await;
}

#[tokio::test]
async fn a_poisoned_engine_stops_the_worker() {
    let (rig, engine) = moody(|_, _| Say::Pass).await;
    *engine.refusal.lock() = Some(CommitError::Poisoned("fdatasync failed".into()));
    rig.produce(&[("a", "1")]).await;
    rig.until(|all| all[0].state.starts_with("stopped: ") && all[0].state.contains("fdatasync"))
        .await;
    assert!(rig.values("out").await.is_empty());
}

#[tokio::test]
async fn a_worker_that_cannot_begin_stands_where_the_one_before_it_stood() {
    let (rig, engine) = moody(|_, _| Say::Pass).await;
    rig.produce(&[("a", "1")]).await;
    rig.settled().await;
    *engine.refusal.lock() = Some(CommitError::Poisoned("a sync failed".into()));
    *engine.claims.lock() = Some(CommitError::Poisoned("nothing is known".into()));
    rig.produce(&[("a", "2")]).await;
    rig.until(|all| all[0].state.contains("a sync failed"))
        .await;
    let name = processor("p");
    let deployed = rig.session.processors().processor(&name).await.unwrap();
    let mut spec = deployed.processor.current().unwrap().spec.clone();
    spec.retry.attempts_max += 1;
    rig.deploy(spec).await;
    let standing = rig
        .until(|all| all[0].state.contains("nothing is known"))
        .await;
    assert_eq!((standing[0].next, standing[0].lag), (Offset(1), 1));
}

#[tokio::test]
async fn outputs_that_do_not_fit_one_commit_are_committed_in_parts_or_wait_and_cost_no_attempt() {
    let large = "x".repeat(3_000);
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&attempts);
    let (rig, engine) = moody(move |value, attempt| {
        if value.starts_with('x') {
            log.lock().push(attempt);
        }
        Say::Pass
    })
    .await;
    let max = 2_500;
    *engine.refusal.lock() = Some(CommitError::TooLarge { bytes: 9_999, max });
    let small: Vec<String> = (0..20).map(|n| format!("{n:0>400}")).collect();
    let messages: Vec<(&str, &str)> = small.iter().map(|v| ("k", &v[..])).collect();
    rig.produce(&messages).await;
    let small: Vec<&str> = small.iter().map(String::as_str).collect();
    rig.hold("out", &small).await;
    assert_eq!(rig.values("out").await, small);
    // Something that the host cannot take is not the message's fault: the message waits, however
    // often it is tried.
    rig.produce(&[("", &large)]).await;
    let waits = "waiting: the handler's result for one message needs a commit of ";
    rig.until(|all| all[0].state.starts_with(waits)).await;
    let calls = attempts.lock().len();
    while attempts.lock().len() < calls + 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    *engine.refusal.lock() = None;
    let all = [&small[..], &[&large]].concat();
    rig.hold("out", &all).await;
    rig.settled().await;
    assert_eq!(rig.values("out").await, all);
    assert!(rig.values("in.p.dlq").await.is_empty());
    let attempts = attempts.lock();
    assert!(attempts.iter().all(|&attempt| attempt == 1), "{attempts:?}");
}

#[tokio::test]
async fn batches_are_no_larger_than_what_comes_of_them_may_be() {
    let (rig, engine) = moody(|_, _| Say::Pass).await;
    let max = 4_000;
    engine.bytes_max.store(max, Ordering::SeqCst);
    *engine.refusal.lock() = Some(CommitError::TooLarge { bytes: 9_999, max });
    let values: Vec<String> = (0..20).map(|n| format!("{n:0>400}")).collect();
    for some in values.chunks(5) {
        let messages: Vec<(&str, &str)> = some.iter().map(|v| ("k", &v[..])).collect();
        rig.produce(&messages).await;
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    rig.hold("out", &values).await;
    assert_eq!(engine.refused.load(Ordering::SeqCst), 0);
    let large = "x".repeat(5_000);
    let refused = rig
        .session
        .messages()
        .produce(&topic("in"), vec![message("k", &large)])
        .await;
    assert!(
        matches!(refused, Err(ProduceError::CallTooLarge { max: 4_000, .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn at_the_bound_of_parked_messages_the_partition_waits_and_nothing_is_dropped() {
    let closed = Arc::new(AtomicBool::new(true));
    let gate = Arc::clone(&closed);
    let rig = Rig::deployed(
        1,
        |spec| {
            spec.breaker.enabled = false;
            spec.retry.attempts_max = u32::MAX;
        },
        move |_, _| match gate.load(Ordering::SeqCst) {
            true => Say::Retry(Some(20)),
            false => Say::Pass,
        },
    )
    .await;
    let count = PARKED_MESSAGES_MAX + 2_345;
    let messages = (0..count).map(|n| message(&n.to_string(), "v"));
    rig.session
        .messages()
        .produce(&topic("in"), messages.collect())
        .await
        .unwrap();
    let full = rig.until(|all| all[0].parked == PARKED_MESSAGES_MAX).await;
    assert_eq!(full[0].next.0 as usize, PARKED_MESSAGES_MAX);
    closed.store(false, Ordering::SeqCst);
    rig.settled().await;
    assert_eq!(rig.values("out").await.len(), count);
}

#[tokio::test]
async fn more_bytes_in_flight_than_the_bound_are_refused_as_busy_and_later_taken() {
    let (rig, engine) = moody(|_, _| Say::Ack).await;
    let shut = engine.gate.acquire_many(1_000).await.unwrap();
    let large = || millrace_broker::NewMessage {
        partition: None,
        deliver_at: None,
        message: millrace_model::Message {
            value: Some(vec![0; 7 << 20].into()),
            ..Default::default()
        },
    };
    let mut waiting = Vec::new();
    let mut busy = false;
    for _ in 0..100 {
        let (session, messages) = (rig.session.clone(), vec![large(); 3]);
        let call =
            tokio::spawn(async move { session.messages().produce(&topic("in"), messages).await });
        tokio::task::yield_now().await;
        if call.is_finished() {
            busy = matches!(call.await.unwrap(), Err(ProduceError::Busy { .. }));
            break;
        }
        waiting.push(call);
    }
    assert!(busy, "{} calls were taken", waiting.len());
    drop(shut);
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    rig.session
        .messages()
        .produce(&topic("in"), vec![large()])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_worker_that_cannot_begin_does_not_hold_up_the_deployment_that_dismisses_it() {
    let (rig, engine) = moody(|_, _| Say::Pass).await;
    rig.topic("also", 1).await;
    let deployed = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    let spec = deployed.processor.current().unwrap().spec.clone();
    *engine.claims.lock() = Some(CommitError::DiskFull);
    let mut both = spec.clone();
    both.topics.push(topic("also"));
    rig.deploy(both).await;
    rig.until(|all| all[0].state.starts_with("waiting: the disk is full"))
        .await;
    let one = tokio::time::timeout(Duration::from_secs(20), rig.deploy(spec));
    one.await.expect("it does not wait for room on the disk");
    *engine.claims.lock() = None;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
}

/// The host ended with both messages in flight. The first one is called alone and waits for its
/// retry, the second one waits behind it.
#[tokio::test]
async fn a_message_that_waits_behind_the_last_suspect_is_not_forgotten() {
    for order in [Order::Key, Order::Partition] {
        let rig = Rig::start(1).await;
        rig.produce(&[("a", "a1"), ("a", "a2")]).await;
        let partition = rig.session.catalogue().topic(&topic("in")).unwrap();
        let partition = partition.partition(PartitionId(0)).unwrap();
        let lease = rig
            .engine
            .claim(&processor("p").group(), partition)
            .await
            .unwrap()
            .lease;
        let progress = Progress {
            first_call: Some(Offset(2)),
            ..Progress::default()
        };
        let marked = Transaction {
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease,
                progress: progress.into(),
            }],
            ..Transaction::default()
        };
        rig.engine.commit(marked).await.unwrap();
        let handler = per_message(|batch, message| match batch.attempts[message] {
            1 if text(batch.value(message)) == "a1" => Say::Retry(Some(50)),
            _ => Say::Pass,
        });
        let module = rig.upload_handler("m", handler).await;
        let in_order = ProcessorSpec {
            order,
            ..spec(module)
        };
        rig.deploy(in_order).await;
        rig.hold("out", &["a1", "a2"]).await;
    }
}

#[tokio::test]
async fn while_a_worker_waits_for_room_its_state_can_be_written_and_it_goes_on_from_there() {
    let (rig, engine) = moody_with(counting(|_, _| Say::Pass)).await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
    *engine.refusal.lock() = Some(CommitError::DiskFull);
    rig.produce(&[("a", "2")]).await;
    rig.until(|all| all[0].state.starts_with("waiting: the disk is full"))
        .await;
    let written = write(&rig, vec![change("a", Some(10))]).await;
    written.expect("the worker waits, and holds up nobody");
    *engine.refusal.lock() = None;
    rig.hold("out", &["1", "2"]).await;
    rig.settled().await;
    assert_eq!(number(&rig, &place(), "a").await, Some(11));
}

#[tokio::test]
async fn a_delayed_message_waits_for_room_on_the_disk_and_is_delivered_once() {
    let (rig, engine) = moody(|_, _| Say::Ack).await;
    *engine.refusal.lock() = Some(CommitError::DiskFull);
    let soon = SystemClock::new().wall().after(Duration::from_millis(20));
    let late = millrace_broker::NewMessage {
        deliver_at: Some(soon.into()),
        ..message("k", "late")
    };
    rig.session
        .messages()
        .produce(&topic("in"), vec![late])
        .await
        .unwrap();
    while engine.refused.load(Ordering::SeqCst) < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(rig.messages("in").await.is_empty());
    *engine.refusal.lock() = None;
    rig.hold("in", &["late"]).await;
    rig.settled().await;
    assert_eq!(rig.values("in").await, ["late"]);
}

fn id_of(rig: &Rig, name: &str) -> TopicId {
    rig.session.catalogue().topic(&topic(name)).unwrap().id
}

#[tokio::test]
async fn a_mistake_of_the_host_with_one_partition_s_delayed_messages_is_none_with_the_others() {
    let (rig, engine) = moody(|_, _| Say::Ack).await;
    rig.topic("other", 1).await;
    let clock = SystemClock::new();
    let delayed = |value, delay| millrace_broker::NewMessage {
        deliver_at: Some(clock.wall().after(Duration::from_millis(delay)).into()),
        ..message("k", value)
    };
    let to = |name, messages| {
        let session = rig.session.clone();
        async move {
            session
                .messages()
                .produce(&topic(name), messages)
                .await
                .unwrap()
        }
    };
    to("in", vec![delayed("bad", 100)]).await;
    to(
        "other",
        vec![delayed("first", 150), delayed("second", 1_500)],
    )
    .await;
    *engine.mistake.lock() = Some(Mistake::Before(id_of(&rig, "in")));
    rig.hold("other", &["first", "second"]).await;
    assert!(rig.messages("in").await.is_empty());
    *engine.mistake.lock() = None;
    rig.hold("in", &["bad"]).await;
}

#[tokio::test]
async fn a_mistake_of_the_host_with_one_schedule_doubles_nothing_and_leaves_the_others_alone() {
    let (rig, engine) = moody(|_, _| Say::Ack).await;
    rig.topic("other", 1).await;
    *engine.mistake.lock() = Some(Mistake::After(id_of(&rig, "in")));
    for to in ["in", "other"] {
        let name = millrace_model::ScheduleName::parse(to).unwrap();
        let schedule = schedules::spec(to, "* * * * * *");
        rig.session
            .schedules()
            .put_schedule(&name, schedule)
            .await
            .unwrap();
    }
    for name in ["in", "other"] {
        for _ in 0..4_000 {
            if rig.messages(name).await.len() >= 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let times = schedules::times(&rig.messages(name).await);
        assert!(times.len() >= 2, "{name} holds {}", times.len());
        let distinct: std::collections::BTreeSet<u64> = times.iter().map(|(due, _)| *due).collect();
        assert_eq!(distinct.len(), times.len(), "{name}: {times:?}");
    }
}
