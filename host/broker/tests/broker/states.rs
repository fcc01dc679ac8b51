//! State from outside, and what becomes of it with the processors that wrote it.

use millrace_broker::state::{NEVER, StateChange, StateQuery, StateValue, StateWrites};
use millrace_broker::{StateAccessError, StatePlace};
use millrace_model::PartitionId;
use millrace_model::bounds::{STATE_CALL_KEYS_MAX, STATE_ENTRIES_MAX};

use crate::rig::{Rig, Say, processor};

fn place() -> StatePlace {
    StatePlace {
        processor: processor("p"),
        topic: None,
        partition: PartitionId(0),
    }
}

fn change(key: usize, value: Option<i64>) -> StateChange {
    StateChange {
        key: key.to_le_bytes()[..].into(),
        value: value.map(StateValue::of_number),
        ends_at: NEVER,
    }
}

async fn write(rig: &Rig, changes: Vec<StateChange>) -> Result<(), StateAccessError> {
    let writes = StateWrites {
        resets: false,
        changes,
    };
    rig.broker.write_state(&place(), writes).await
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
        let filled = write(&rig, keys.map(|key| change(key, Some(1))).collect()).await;
        filled.expect("there is room");
    }
    let refused = write(&rig, vec![change(STATE_ENTRIES_MAX, Some(1))]).await;
    assert!(
        matches!(refused, Err(StateAccessError::Bound(_))),
        "{refused:?}"
    );
    let changed = write(&rig, vec![change(0, Some(2)), change(1, None)]).await;
    changed.expect("what is there may change, and go");
    assert_eq!(entries(&rig).await, STATE_ENTRIES_MAX - 1);
    let written = write(&rig, vec![change(STATE_ENTRIES_MAX, Some(1))]).await;
    written.expect("there is room again");
}
