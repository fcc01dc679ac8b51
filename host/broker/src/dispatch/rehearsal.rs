//! Rehearsals: a handler is called with sample messages as a worker would call it, with the same checks of its answers and the same
//! cuts of failing batches, but without topics, commits or an engine. For `millrace test`.
//!
//! State lives in memory, one table per partition, and keeps what succeeded. A message that fails is reported, not tried again, and
//! no message waits behind another.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::state::keeper::KeepTable;
use millrace_engine::state::{StateAttempt, StateChange, StateTable, StateWrites};
use millrace_model::processor::Limits;
use millrace_model::{
    Answer, Clock, ColumnBatch, Durability, Header, Message, Timestamp, Topic, TopicId, TopicName,
    TopicSpec,
};

use crate::dispatch::answer::Verdict;
use crate::dispatch::live::{OutputTopic, OutputTopics};
use crate::ground::columns;
use crate::ground::partitioner::Partitioner;
use crate::handler::{BatchHandler, CallError, CallUse, Called};

/// A handler and the state of its partitions.
pub struct Rehearsal {
    handler: Arc<dyn BatchHandler>,
    outputs_max: usize,
    topics: OutputTopics,
    tables: BTreeMap<u32, Arc<StateTable>>,
    clock: Arc<dyn Clock>,
}

/// What became of a batch.
#[derive(Clone, Debug, Default)]
pub struct Rehearsed {
    /// One per message, in order.
    pub messages: Vec<RehearsedMessage>,
    /// The calls, in order.
    pub calls: Vec<RehearsedCall>,
}

/// What became of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RehearsedMessage {
    /// `ack`, `emit`, `unavailable`, or the cause of its failure.
    pub outcome: &'static str,
    /// The class of the failure.
    pub class: String,
    /// The reason of the failure.
    pub reason: String,
    /// The delay that the handler asks for.
    pub after_ms: Option<u64>,
    /// Function names, if it trapped.
    pub backtrace: Option<String>,
    /// Its outputs.
    pub outputs: Vec<RehearsedOutput>,
}

/// An output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RehearsedOutput {
    /// The topic that it names; `None` is the default output.
    pub topic: Option<String>,
    /// The partition that it names.
    pub partition: Option<u32>,
    /// Key, value, headers and timestamp.
    pub message: Message,
    /// When it is delivered; `None` is at once.
    pub deliver_at: Option<Timestamp>,
}

/// One call.
#[derive(Clone, Debug, Default)]
pub struct RehearsedCall {
    /// The messages, as indexes in the batch.
    pub messages: Vec<usize>,
    /// What it used, if that is measured.
    pub used: Option<CallUse>,
    /// The changes of the state that are kept, by key.
    pub changes: Vec<StateChange>,
    /// Why it was made again in parts, if it was.
    pub discarded: Option<String>,
}

impl Rehearsal {
    /// A handler without state yet.
    #[must_use]
    pub fn new(handler: Arc<dyn BatchHandler>, limits: &Limits, clock: Arc<dyn Clock>) -> Self {
        Self {
            handler,
            outputs_max: limits.answer_outputs_max as usize,
            topics: any_topic(),
            tables: BTreeMap::new(),
            clock,
        }
    }

    /// Sets entries of a partition's state.
    ///
    /// # Errors
    /// Says which entry is too large.
    pub fn set_state(&mut self, partition: u32, changes: Vec<StateChange>) -> Result<(), String> {
        changes.iter().try_for_each(StateChange::check)?;
        let writes = StateWrites {
            changes,
            ..StateWrites::default()
        };
        Ok(self.table(partition).apply(&writes)?)
    }

    /// The state of a partition.
    #[must_use]
    pub fn state(&self, partition: u32) -> Option<&Arc<StateTable>> {
        self.tables.get(&partition)
    }

    fn table(&mut self, partition: u32) -> Arc<StateTable> {
        Arc::clone(self.tables.entry(partition).or_default())
    }

    /// Calls the handler with the messages, in smaller parts where it fails.
    ///
    /// # Errors
    /// [`CallError::Host`] and [`CallError::Interrupted`]: they say nothing about the handler.
    pub async fn call(&mut self, batch: ColumnBatch) -> Result<Rehearsed, CallError> {
        let table = self.table(batch.partition);
        let batch = Arc::new(batch);
        let mut done = Rehearsed {
            messages: vec![RehearsedMessage::default(); batch.len()],
            calls: Vec::new(),
        };
        // The next part is the last.
        let mut parts: Vec<Vec<usize>> = vec![(0..batch.len()).collect()];
        while let Some(part) = parts.pop() {
            let columns = match part.len() == batch.len() {
                true => Arc::clone(&batch),
                false => Arc::new(columns::select(&batch, part.iter().copied())),
            };
            let attempt = self.handler.uses_state().then(|| {
                let attempt = StateAttempt::new(Arc::clone(&table), self.clock.wall(), part.len());
                Box::new(attempt)
            });
            let Called { outcome, used } = self.handler.call(&columns, attempt).await;
            let checked = outcome.and_then(|(answer, attempt)| {
                let verdict = self.checked(answer, &columns)?;
                Ok((verdict, attempt))
            });
            let mut call = RehearsedCall {
                messages: part.clone(),
                used,
                ..RehearsedCall::default()
            };
            match checked {
                Ok((verdict, attempt)) if mixed(&part, &verdict, attempt.as_deref()) => {
                    let failed = verdict.failed.iter().map(|failed| part[failed.message]);
                    parts.extend(apart(&part, &failed.collect::<Vec<_>>()));
                    call.discarded = Some("a message that failed has written state".to_owned());
                }
                Ok((verdict, attempt)) => {
                    note(&mut done, &part, &columns, &verdict);
                    let is_kept = part.len() > 1 || verdict.failed.is_empty();
                    if let Some(attempt) = attempt.filter(|_| is_kept) {
                        call.changes = kept(&table, *attempt)?;
                    }
                }
                Err(error @ (CallError::Host(_) | CallError::Interrupted)) => return Err(error),
                Err(CallError::Unavailable(reason)) => {
                    for &message in &part {
                        done.messages[message] = RehearsedMessage {
                            outcome: "unavailable",
                            reason: reason.clone(),
                            ..RehearsedMessage::default()
                        };
                    }
                }
                Err(error) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second.to_vec(), first.to_vec()]);
                    call.discarded = Some(error.to_string());
                }
                Err(error) => note(&mut done, &part, &columns, &Verdict::alone(&error, None)),
            }
            done.calls.push(call);
        }
        Ok(done)
    }

    /// Checks the answer as a worker does.
    fn checked(&self, answer: Answer, batch: &ColumnBatch) -> Result<Verdict, CallError> {
        let verdict = Verdict::of(answer, batch, &self.topics, self.outputs_max)?;
        verdict.outputs.check_times(batch, self.clock.wall())?;
        Ok(verdict)
    }
}

/// One topic that takes every output, whatever topic it names.
fn any_topic() -> OutputTopics {
    let spec = TopicSpec {
        name: TopicName::parse("output").expect("a valid name"),
        partitions: 1,
        durability: Durability::default(),
        partitioner: None,
        owner: None,
        created_at: Timestamp::default(),
        settings: Default::default(),
    };
    let topic = Topic {
        id: TopicId(0),
        spec,
    };
    let partitioner = Arc::new(Partitioner::new(1, None));
    OutputTopics {
        topics: vec![OutputTopic { topic, partitioner }],
        default: Some(0),
        takes_all: true,
    }
}

/// Whether a failed message has written state that others of its batch may have seen.
fn mixed(part: &[usize], verdict: &Verdict, attempt: Option<&StateAttempt>) -> bool {
    let wrote = |message| attempt.is_some_and(|attempt| attempt.wrote(message));
    part.len() > 1 && verdict.failed.iter().any(|failed| wrote(failed.message))
}

/// The part without the failed messages, each of which stands alone; the first piece comes last.
fn apart(part: &[usize], failed: &[usize]) -> Vec<Vec<usize>> {
    let mut pieces: Vec<Vec<usize>> = Vec::new();
    let mut run = Vec::new();
    for &message in part {
        if failed.contains(&message) {
            pieces.extend((!run.is_empty()).then(|| std::mem::take(&mut run)));
            pieces.push(vec![message]);
        } else {
            run.push(message);
        }
    }
    pieces.extend((!run.is_empty()).then_some(run));
    pieces.reverse();
    pieces
}

/// Applies what a call wrote, and returns it by key.
fn kept(table: &StateTable, attempt: StateAttempt) -> Result<Vec<StateChange>, CallError> {
    let writes = attempt.into_writes();
    let applied = table.apply(&writes);
    applied.map_err(|why| CallError::Host(why.to_owned()))?;
    let mut changes = writes.changes;
    changes.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(changes)
}

fn note(done: &mut Rehearsed, part: &[usize], batch: &ColumnBatch, verdict: &Verdict) {
    for &message in part {
        done.messages[message] = RehearsedMessage {
            outcome: "ack",
            ..RehearsedMessage::default()
        };
    }
    for failed in &verdict.failed {
        done.messages[part[failed.message]] = RehearsedMessage {
            outcome: failed.cause.as_str(),
            class: failed.class.clone(),
            reason: failed.reason.clone(),
            after_ms: failed.after_ms,
            backtrace: failed.backtrace.clone(),
            outputs: Vec::new(),
        };
    }
    let outputs = &verdict.outputs;
    for output in 0..outputs.len() {
        let source = outputs.source(output);
        let bytes = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
        let header = |(name, value): (&[u8], Option<&[u8]>)| Header {
            name: Bytes::copy_from_slice(name),
            value: bytes(value),
        };
        let headers = match outputs.own_headers(output, batch) {
            Some(own) => own.map(header).collect(),
            None => batch.headers(source).map(header).collect(),
        };
        let message = &mut done.messages[part[source]];
        message.outcome = "emit";
        message.outputs.push(RehearsedOutput {
            topic: outputs.topic_named(output).map(str::to_owned),
            partition: outputs.partition(output),
            message: Message {
                key: bytes(outputs.key(output, batch)),
                value: bytes(outputs.value(output, batch)),
                headers,
                timestamp: outputs.timestamp(output, batch),
            },
            deliver_at: outputs.deliver_at(output),
        });
    }
}

/// Messages of one partition as a batch, each at its first attempt.
#[must_use]
pub fn batch_of(
    topic: &str,
    partition: u32,
    offset_first: u64,
    messages: &[Message],
) -> ColumnBatch {
    let mut batch = ColumnBatch {
        topic: topic.to_owned(),
        partition,
        ..ColumnBatch::default()
    };
    for message in messages {
        columns::push_message(&mut batch, message);
    }
    let offsets = (0..messages.len() as u64).map(|index| offset_first.saturating_add(index));
    batch.offsets = offsets.collect();
    batch
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use millrace_engine::state::{KeyColumns, StateValue, WriteColumns};
    use millrace_model::SystemClock;
    use millrace_model::columns::Detail;

    use super::*;

    /// Counts every message under one key; rejects values that begin with r and traps on t.
    struct Counting;

    #[async_trait]
    impl BatchHandler for Counting {
        async fn process(&self, _: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
            Err(CallError::Host("called without state".to_owned()))
        }

        fn uses_state(&self) -> bool {
            true
        }

        async fn process_with_state(
            &self,
            batch: &Arc<ColumnBatch>,
            mut state: Box<StateAttempt>,
        ) -> Result<(Answer, Box<StateAttempt>), CallError> {
            let mut answer = Answer::default();
            for message in 0..batch.len() {
                let keys = KeyColumns {
                    data: b"n",
                    spans: &[0, 1],
                };
                let how = WriteColumns {
                    ttl_ms: &[],
                    messages: &[message as u32],
                };
                let added = state.add(&keys, &[], &how);
                added.map_err(|error| CallError::Host(error.to_string()))?;
                match batch.value(message).and_then(<[u8]>::first) {
                    Some(b't') => {
                        return Err(CallError::Trap {
                            message: "on t".to_owned(),
                            backtrace: String::new(),
                        });
                    }
                    Some(b'r') => {
                        answer.outcomes.push(3);
                        answer.details.push(Detail {
                            message: message as u32,
                            after_ms: None,
                            class: "r".to_owned(),
                            reason: "begins with r".to_owned(),
                        });
                    }
                    _ => answer.outcomes.push(0),
                }
            }
            Ok((answer, state))
        }
    }

    fn message(value: &str) -> Message {
        Message {
            key: None,
            value: Some(value.to_owned().into()),
            headers: Vec::new(),
            timestamp: Timestamp(1),
        }
    }

    #[test]
    fn offsets_of_a_batch_rise_and_stop_at_the_largest() {
        let messages = vec![Message::default(); 3];
        assert_eq!(batch_of("t", 0, 7, &messages).offsets, [7, 8, 9]);
        let at_the_end = batch_of("t", 0, u64::MAX - 1, &messages);
        assert_eq!(at_the_end.offsets, [u64::MAX - 1, u64::MAX, u64::MAX]);
    }

    #[tokio::test]
    async fn failed_messages_stand_alone_and_leave_nothing_in_the_state() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let mut rehearsal = Rehearsal::new(Arc::new(Counting), &Limits::default(), clock);
        let start = StateChange {
            key: Arc::from(&b"n"[..]),
            value: Some(StateValue::of_number(10)),
            ends_at: millrace_engine::state::NEVER,
        };
        rehearsal.set_state(0, vec![start]).expect("set");
        let values = ["a", "r1", "b", "t", "c"].map(message);
        let done = rehearsal.call(batch_of("in", 0, 0, &values)).await;
        let done = done.expect("called");
        let outcomes: Vec<&str> = done.messages.iter().map(|m| m.outcome).collect();
        assert_eq!(outcomes, ["ack", "reject", "ack", "trap", "ack"]);
        assert_eq!(done.messages[1].reason, "begins with r");
        let last = done.calls.iter().rev().find_map(|call| call.changes.last());
        let number = last.and_then(|change| change.value.as_ref()?.as_number());
        assert_eq!(number, Some(13));
        assert!(
            rehearsal
                .state(0)
                .is_some_and(|table| table.size().entries == 1)
        );
        assert!(done.calls.iter().any(|call| call.discarded.is_some()));
    }
}
