//! Chooses the partitions of outputs: the handler's choice if there is one, otherwise the output
//! topic's partitioner.

use std::sync::Arc;
use std::time::Duration;

use millrace_model::ColumnBatch;
use millrace_model::columns::NONE;

use crate::dispatch::answer::Outputs;
use crate::dispatch::live::OutputTopics;
use crate::ground::partitioner::{BuiltIn, Partitioner};
use crate::handler::CallError;

/// The partition of each output, at this moment of the monotonic clock.
///
/// # Errors
/// The failure of a partitioner component. A batch whose outputs it could not place fails as if its
/// processor could not process it.
pub(crate) async fn place(
    outputs: &Outputs,
    batch: &ColumnBatch,
    topics: &OutputTopics,
    now: Duration,
) -> Result<Vec<u32>, CallError> {
    let mut placed = vec![NONE; outputs.len()];
    for (index, topic) in topics.topics.iter().enumerate() {
        let unplaced = |output: &usize| outputs.topic(*output) == index as u32;
        if topic.partitioner.is_component() {
            let asked: Vec<usize> = (0..outputs.len())
                .filter(unplaced)
                .filter(|&output| outputs.partition(output).is_none())
                .collect();
            let name = topic.topic.spec.name.as_str();
            let answer = ask(&asked, outputs, batch, name, &topic.partitioner).await?;
            for (output, partition) in asked.into_iter().zip(answer) {
                placed[output] = partition;
            }
        } else {
            choose(
                index as u32,
                outputs,
                batch,
                topic
                    .partitioner
                    .built_in(topic.partitioner.partitions(), now),
                &mut placed,
            );
        }
    }
    for (output, place) in placed.iter_mut().enumerate() {
        // A partition beyond the topic's last is possible only if one topic takes the outputs meant
        // for others.
        let partitions = topics.partitions(outputs.topic(output)).max(1);
        let asked = outputs.partition(output).map(|asked| asked % partitions);
        *place = asked.unwrap_or(*place);
    }
    Ok(placed)
}

fn choose(
    topic: u32,
    outputs: &Outputs,
    batch: &ColumnBatch,
    mut built_in: BuiltIn<'_>,
    placed: &mut [u32],
) {
    for (output, place) in placed.iter_mut().enumerate() {
        if outputs.topic(output) == topic && outputs.partition(output).is_none() {
            let bytes = outputs.value(output, batch).map_or(0, <[u8]>::len);
            *place = built_in.choose(outputs.key(output, batch), bytes);
        }
    }
}

async fn ask(
    asked: &[usize],
    outputs: &Outputs,
    batch: &ColumnBatch,
    topic: &str,
    partitioner: &Partitioner,
) -> Result<Vec<u32>, CallError> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let mut columns = ColumnBatch {
        topic: topic.to_owned(),
        ..ColumnBatch::default()
    };
    for &output in asked {
        outputs.show(output, batch, &mut columns);
    }
    let partitions = partitioner.partitions();
    let answer = partitioner
        .by_component(partitions, &Arc::new(columns))
        .await;
    answer.map_err(|error| named(error, topic))
}

/// Adds the topic's name to a partitioner's error.
fn named(error: CallError, topic: &str) -> CallError {
    let name = |text: String| format!("partitioner of topic {topic}: {text}");
    match error {
        CallError::Unavailable(text) => CallError::Unavailable(name(text)),
        CallError::Trap { message, backtrace } => CallError::Trap {
            message: name(message),
            backtrace,
        },
        CallError::Timeout(after) => CallError::Timeout(after),
        CallError::Memory(text) => CallError::Memory(name(text)),
        CallError::BadAnswer(text) => CallError::BadAnswer(name(text)),
        CallError::Interrupted => CallError::Interrupted,
        CallError::Host(text) => CallError::Host(name(text)),
    }
}
