//! State from outside, and what becomes of it with the processors that wrote it.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_broker::handler::BatchHandler;
use millrace_broker::state::{NEVER, StateChange, StateQuery, StateValue, StateWrites};
use millrace_broker::{CallError, StateAccessError, StatePlace};
use millrace_engine::state::{KeyColumns, StateAttempt, WriteColumns};
use millrace_model::bounds::{STATE_CALL_KEYS_MAX, STATE_ENTRIES_MAX};
use millrace_model::{Answer, ColumnBatch, PartitionId};

use crate::rig::{Rig, Say, per_message, processor};

/// Adds 1 to the key of each message, and then says what is said of it.
pub(crate) struct Counting<H>(H);

pub(crate) fn counting<F>(decide: F) -> Counting<impl BatchHandler>
where
    F: Fn(&ColumnBatch, usize) -> Say + Send + Sync + 'static,
{
    Counting(per_message(decide))
}

#[async_trait]
impl<H: BatchHandler> BatchHandler for Counting<H> {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        self.0.process(batch).await
    }

    fn uses_state(&self) -> bool {
        true
    }

    async fn process_with_state(
        &self,
        batch: &Arc<ColumnBatch>,
        mut state: Box<StateAttempt>,
    ) -> Result<(Answer, Box<StateAttempt>), CallError> {
        for message in 0..batch.len() {
            let key = batch.key(message).unwrap_or_default();
            let keys = KeyColumns {
                data: key,
                spans: &[0, key.len() as u32],
            };
            let how = WriteColumns {
                ttl_ms: &[],
                messages: &[message as u32],
            };
            let added = state.add(&keys, &[], &how);
            added.map_err(|error| CallError::BadAnswer(error.to_string()))?;
        }
        Ok((self.0.process(batch).await?, state))
    }
}

pub(crate) fn place() -> StatePlace {
    StatePlace {
        processor: processor("p"),
        topic: None,
        partition: PartitionId(0),
    }
}

fn numbered(key: usize, value: Option<i64>) -> StateChange {
    change(&format!("{key:08}"), value)
}

pub(crate) fn change(key: &str, value: Option<i64>) -> StateChange {
    StateChange {
        key: key.as_bytes().into(),
        value: value.map(StateValue::of_number),
        ends_at: NEVER,
    }
}

pub(crate) async fn write(rig: &Rig, changes: Vec<StateChange>) -> Result<(), StateAccessError> {
    let writes = StateWrites {
        resets: false,
        changes,
    };
    rig.broker.write_state(&place(), writes).await
}

/// The number of a key.
pub(crate) async fn number(rig: &Rig, place: &StatePlace, key: &str) -> Option<i64> {
    let query = StateQuery {
        prefix: key.as_bytes().to_vec(),
        entries_max: 1,
        ..StateQuery::default()
    };
    let page = rig.broker.state(place, query).await.expect("shown");
    page.entries.first()?.value.as_number()
}

async fn entries(rig: &Rig) -> usize {
    let shown = rig.broker.state(&place(), StateQuery::default()).await;
    shown.expect("shown").size.entries
}

#[tokio::test]
async fn at_a_full_table_keys_can_be_changed_and_removed() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Ack).await;
    for start in (0..STATE_ENTRIES_MAX).step_by(STATE_CALL_KEYS_MAX) {
        let keys = start..start + STATE_CALL_KEYS_MAX;
        let filled = write(&rig, keys.map(|key| numbered(key, Some(1))).collect()).await;
        filled.expect("there is room");
    }
    let refused = write(&rig, vec![numbered(STATE_ENTRIES_MAX, Some(1))]).await;
    assert!(
        matches!(refused, Err(StateAccessError::Bound(_))),
        "{refused:?}"
    );
    let changed = write(&rig, vec![numbered(0, Some(2)), numbered(1, None)]).await;
    changed.expect("what is there may change, and go");
    assert_eq!(entries(&rig).await, STATE_ENTRIES_MAX - 1);
    let written = write(&rig, vec![numbered(STATE_ENTRIES_MAX, Some(1))]).await;
    written.expect("there is room again");
}
