//! State that has to be read from the disk: a call waits for it in the host's time, and what cannot be read is nobody's mistake.

use std::sync::Arc;
use std::time::Duration;

use guest_artifacts as guests;
use millrace_broker::handler::CallError;
use millrace_broker::state::{StateAttempt, StateChange, StateTable, StateValue, StateWrites};
use millrace_engine::local::{LocalEngine, LocalOptions};
use millrace_engine::state::{NEVER, StateWrite};
use millrace_engine::{Engine, Transaction};
use millrace_log::sim::{Effect, Fault, Gate, OperationKind, SimDisk};
use millrace_model::processor::Limits;
use millrace_model::{Durability, SystemClock, Timestamp, TopicName, TopicSpec};

use crate::state::keyed;
use crate::support::{TestHost, outputs};

/// A table of counts that is all on the disk: `a` is at 41. Nothing of it is in memory, for a simulated disk has no cache.
struct OnDisk {
    disk: SimDisk,
    table: Arc<StateTable>,
    _engine: Arc<LocalEngine>,
    _home: tempfile::TempDir,
}

impl OnDisk {
    async fn new() -> Self {
        let (disk, home) = (SimDisk::default(), tempfile::tempdir().unwrap());
        let open = || {
            let options = LocalOptions {
                state_resident_bytes: 0,
                scrub_bytes_per_second: 0,
                ..LocalOptions::default()
            };
            let clock = Arc::new(SystemClock::new());
            LocalEngine::open_on(Arc::new(disk.clone()), home.path(), options, clock)
        };
        let engine = open().await.unwrap();
        let spec = TopicSpec {
            name: TopicName::parse("in").unwrap(),
            partitions: 1,
            durability: Durability::Durable,
            partitioner: None,
            owner: None,
            created_at: Timestamp(1),
            settings: Default::default(),
        };
        let topic = engine.create_topic(spec).await.unwrap();
        let partition = topic.partitions().next().unwrap();
        let writes = StateWrites {
            changes: vec![StateChange {
                key: b"a"[..].into(),
                value: Some(StateValue::of_number(41)),
                ends_at: NEVER,
            }],
            ..StateWrites::default()
        };
        let transaction = Transaction {
            state: vec![StateWrite {
                group: "p".into(),
                partition,
                lease: None,
                writes: Arc::new(writes),
            }],
            ..Transaction::default()
        };
        engine.commit(transaction).await.unwrap();
        engine.close().await;
        drop(engine);
        let engine = open().await.unwrap();
        let table = engine.state("p", partition).unwrap();
        assert!(table.is_paged());
        Self {
            disk,
            table,
            _engine: engine,
            _home: home,
        }
    }

    fn attempt(&self, messages: usize) -> Box<StateAttempt> {
        let table = Arc::clone(&self.table);
        Box::new(StateAttempt::new(table, Timestamp(1), messages))
    }

    fn on_read(&self, effect: Effect) {
        let fault = Fault::new(effect).on(OperationKind::Read).at_path("state");
        self.disk.inject(fault);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_goes_on_where_the_disk_says_that_it_was() {
    let (host, state) = (TestHost::start(), OnDisk::new().await);
    let handler = host.processor("p", guests::COUNTER).await;
    let batch = keyed(&["a", "b", "a"], None);
    let called = handler.process_with_state(&batch, state.attempt(3)).await;
    let (answer, written) = called.unwrap();
    assert_eq!(outputs(&batch, &answer), [&b"42"[..], b"1", b"43"]);
    let writes = written.into_writes();
    assert_eq!(writes.adds, Some(state.table.adds(&writes).unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_the_hosts_fault_and_may_be_there_the_next_time() {
    let (host, state) = (TestHost::start(), OnDisk::new().await);
    let handler = host.processor("p", guests::COUNTER).await;
    let batch = keyed(&["a"], None);
    state.on_read(Effect::Fail);
    let called = handler.process_with_state(&batch, state.attempt(1)).await;
    let error = called.map(drop).unwrap_err();
    assert!(matches!(error, CallError::Host(_)), "{error:?}");
    assert!(error.to_string().contains("cannot be read"), "{error}");
    let called = handler.process_with_state(&batch, state.attempt(1)).await;
    assert_eq!(outputs(&batch, &called.unwrap().0), [b"42"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_the_disk_is_not_the_components_time() {
    let (host, state) = (TestHost::start(), OnDisk::new().await);
    let limits = Limits {
        call_ms_max: 300,
        ..Limits::default()
    };
    let handler = host.limited("p", guests::COUNTER, limits).await;
    let batch = keyed(&["a"], None);
    let gate = Gate::default();
    state.on_read(Effect::Wait(gate.clone()));
    let attempt = state.attempt(1);
    let called = tokio::spawn(async move {
        let called = handler.process_with_state(&batch, attempt).await;
        called.map(|(answer, _)| outputs(&batch, &answer))
    });
    let arrived = gate.clone();
    let arrived =
        tokio::task::spawn_blocking(move || arrived.wait_for_arrival(Duration::from_secs(20)));
    assert!(arrived.await.unwrap(), "it reads from the disk");
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(!called.is_finished(), "it waits, and is not timed out");
    gate.open();
    assert_eq!(called.await.unwrap().unwrap(), [b"42"]);
}
