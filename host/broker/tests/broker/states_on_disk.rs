//! State in files: how a worker removes entries that have expired there.

use std::sync::Arc;
use std::time::Duration;

use millrace_broker::state::{StateChange, StateValue, StateWrites};
use millrace_broker::{Broker, Caller};
use millrace_engine::state::StateWrite;
use millrace_engine::{Engine, MemoryEngine, Transaction};
use millrace_local::{LocalEngine, LocalOptions};
use millrace_model::{Clock, PartitionId, SystemClock, Timestamp};

use crate::rig::{Modules, Rig, Say, processor, spec, topic};
use crate::states::counting;
use crate::two_hosts::until;

/// Expired entries, and the size of their keys: together more than one transaction takes here.
const ENDED: usize = 1_000;
const KEY_BYTES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_has_no_room_to_remove_what_has_ended_leaves_it_and_spends_no_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(SystemClock::new());
    let options = LocalOptions {
        journal_file_bytes: 32 << 10,
        state_resident_bytes: Some(0),
        checkpoint_interval: Duration::from_millis(5),
        // So the cleaner does not remove it first.
        cleaning_interval: Duration::from_secs(3_600),
        ..LocalOptions::default()
    };
    let engine = LocalEngine::open(dir.path(), options, clock.clone());
    let engine = engine.await.unwrap();
    let modules = Arc::new(Modules::default());
    let broker = Broker::start(clock.clone(), engine.clone(), modules.clone());
    let broker = broker.await.unwrap();
    let rig = Rig {
        session: broker.session(Caller::unnamed()),
        broker,
        engine: MemoryEngine::new(clock.clone()),
        modules,
    };
    rig.topic("in", 1).await;
    rig.topic("out", 1).await;
    let place = rig.session.catalogue().topic(&topic("in")).unwrap();
    let place = place.partition(PartitionId(0)).unwrap();
    let ends_at = Timestamp(clock.wall().0 + 300);
    for from in (0..ENDED).step_by(100) {
        let change = |number: usize| StateChange {
            key: format!("{number:0KEY_BYTES$}").as_bytes().into(),
            value: Some(StateValue::of_number(1)),
            ends_at,
        };
        let writes = StateWrites {
            changes: (from..from + 100).map(change).collect(),
            ..StateWrites::default()
        };
        let transaction = Transaction {
            state: vec![StateWrite {
                group: processor("p").group(),
                partition: place,
                lease: None,
                writes: Arc::new(writes),
            }],
            ..Transaction::default()
        };
        engine.commit(transaction).await.unwrap();
    }
    let table = engine.state(&processor("p").group(), place).await.unwrap();
    until("it is in a file", async || table.is_paged()).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(table.size().entries, ENDED, "they are still there");
    let handler = counting(|batch, message| {
        assert_eq!(batch.attempts[message], 1, "nothing failed before");
        Say::Ack
    });
    let module = rig.upload_handler("m", handler).await;
    rig.deploy(spec(module)).await;
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    rig.settled().await;
    assert!(rig.letters().await.is_empty());
    assert_eq!(table.size().entries, ENDED + 2, "what has ended waits");
}
