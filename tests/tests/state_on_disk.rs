//! State that must be read from the disk: the wait does not count toward the call's time, and
//! neither the guest nor the message is blamed for what cannot be read.

use std::sync::Arc;
use std::time::Duration;

use guest_artifacts as guests;
use millrace_broker::handler::{BatchHandler, CallError, LiveConfig, LoadRequest, ModuleHost as _};
use millrace_broker::state::{StateAttempt, StateChange, StateTable, StateValue, StateWrites};
use millrace_engine::state::{NEVER, StateWrite};
use millrace_engine::{Engine, Transaction};
use millrace_local::{LocalEngine, LocalOptions};
use millrace_log::sim::{Effect, Fault, Gate, OperationKind, SimDisk};
use millrace_model::processor::{Grants, Limits};
use millrace_model::{
    Answer, ColumnBatch, Digest, Durability, GroupName, ProcessorName, SystemClock, Timestamp,
    TopicName, TopicSpec,
};
use millrace_wasm::{CompileChild, WasmHost, WasmOptions};
use sha2::{Digest as _, Sha256};

/// The subcommand that makes this package's bench the compile child.
const COMPILE: &str = "compile-module";

/// A component that counts keys.
struct Counter {
    handler: Arc<dyn BatchHandler>,
    _home: tempfile::TempDir,
}

impl Counter {
    async fn new(limits: Limits) -> Self {
        let home = tempfile::tempdir().unwrap();
        let child = CompileChild {
            program: env!("CARGO_BIN_EXE_bench").into(),
            args: vec![COMPILE.to_owned()],
        };
        let options = WasmOptions::new(home.path().join("code"), child);
        let host = WasmHost::new(options, Arc::new(SystemClock::new())).unwrap();
        let request = LoadRequest {
            digest: Digest(Sha256::digest(guests::COUNTER).into()),
            bytes: guests::COUNTER.into(),
            owner: "p".to_owned(),
            revision: 1,
            limits,
            grants: Grants::default(),
            config: LiveConfig::default(),
            access: None,
        };
        Self {
            handler: host.processor(request).await.unwrap(),
            _home: home,
        }
    }

    /// The counts of a call, or its error.
    async fn counts(&self, keys: &[&str], state: Box<StateAttempt>) -> Result<Counted, CallError> {
        let batch = keyed(keys);
        let called = self.handler.process_with_state(&batch, state).await;
        called.map(|(answer, state)| (outputs(&batch, &answer), state))
    }
}

type Counted = (Vec<String>, Box<StateAttempt>);

fn keyed(keys: &[&str]) -> Arc<ColumnBatch> {
    let mut batch = ColumnBatch {
        topic: "in".into(),
        ..ColumnBatch::default()
    };
    for key in keys {
        let start = batch.data.len() as u32;
        batch.data.extend_from_slice(key.as_bytes());
        batch.keys.extend([start, key.len() as u32]);
        batch.values.extend([start, key.len() as u32]);
        batch.offsets.push(batch.offsets.len() as u64);
        batch.timestamps.push(1);
        batch.attempts.push(1);
        batch.header_ends.push(0);
    }
    Arc::new(batch)
}

/// The values of an answer's outputs, each of which has its own value.
fn outputs(batch: &ColumnBatch, answer: &Answer) -> Vec<String> {
    let both = [batch.data.as_slice(), answer.data.as_slice()].concat();
    let value = |span: &[u32]| both[span[0] as usize..][..span[1] as usize].to_vec();
    let values = answer.values.chunks_exact(2).map(value);
    values
        .map(|value| String::from_utf8(value).unwrap())
        .collect()
}

/// A table of counts that is entirely on the disk, with 41 for `a`. Nothing of it is in memory,
/// since the simulated disk has no cache.
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
                state_resident_bytes: Some(0),
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
        let topic = engine.create_topic(spec, Vec::new()).await.unwrap();
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
                group: group(),
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
        let table = engine.state(&group(), partition).await.unwrap();
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
    let (counter, state) = (Counter::new(Limits::default()).await, OnDisk::new().await);
    let counted = counter.counts(&["a", "b", "a"], state.attempt(3)).await;
    let (counts, written) = counted.unwrap();
    assert_eq!(counts, ["42", "1", "43"]);
    let writes = written.into_writes();
    assert_eq!(writes.adds, Some(state.table.adds(&writes).unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_the_hosts_fault_and_may_be_there_the_next_time() {
    let (counter, state) = (Counter::new(Limits::default()).await, OnDisk::new().await);
    state.on_read(Effect::Fail);
    let counted = counter.counts(&["a"], state.attempt(1)).await;
    let error = counted.map(drop).unwrap_err();
    assert!(matches!(error, CallError::Host(_)), "{error:?}");
    assert!(error.to_string().contains("cannot be read"), "{error}");
    let counted = counter.counts(&["a"], state.attempt(1)).await;
    assert_eq!(counted.unwrap().0, ["42"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_the_disk_is_not_the_components_time() {
    let limits = Limits {
        call_ms_max: 300,
        ..Limits::default()
    };
    let (counter, state) = (Counter::new(limits).await, OnDisk::new().await);
    let gate = Gate::default();
    state.on_read(Effect::Wait(gate.clone()));
    let attempt = state.attempt(1);
    let counting = tokio::spawn(async move { counter.counts(&["a"], attempt).await });
    let arrived = gate.clone();
    let arrived =
        tokio::task::spawn_blocking(move || arrived.wait_for_arrival(Duration::from_secs(20)));
    assert!(arrived.await.unwrap(), "it reads from the disk");
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(!counting.is_finished(), "it waits, and is not timed out");
    gate.open();
    assert_eq!(counting.await.unwrap().unwrap().0, ["42"]);
}

/// The group of processor `p`.
fn group() -> GroupName {
    let name = ProcessorName::parse("p").expect("a valid name");
    name.group()
}
