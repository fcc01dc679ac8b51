//! `message-processor`: a batch in, an answer out.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_broker::handler::{BatchHandler, CallError, Called, Interface};
use millrace_broker::state::StateAttempt;
use millrace_model::columns::Detail;
use millrace_model::processor::Limits;
use millrace_model::{Answer, ColumnBatch};
use wasmtime::component::{ComponentType, Lift};

use super::BatchColumns;
use crate::call::{GuestCall, Returned};
use crate::pool::{Guest, Pool};

/// `types.detail`.
#[derive(ComponentType, Lift)]
#[component(record)]
struct DetailRecord {
    message: u32,
    #[component(name = "after-ms")]
    after_ms: Option<u64>,
    class: String,
    reason: String,
}

/// `types.answer`.
#[derive(ComponentType, Lift)]
#[component(record)]
struct AnswerColumns {
    outcomes: Vec<u8>,
    details: Vec<DetailRecord>,
    data: Vec<u8>,
    sources: Vec<u32>,
    #[component(name = "topic-names")]
    topic_names: Vec<String>,
    topics: Vec<u32>,
    partitions: Vec<u32>,
    keys: Vec<u32>,
    values: Vec<u32>,
    #[component(name = "header-ends")]
    header_ends: Vec<u32>,
    headers: Vec<u32>,
    times: Vec<u64>,
}

/// `types.batch-error`.
#[derive(ComponentType, Lift)]
#[component(variant)]
enum BatchError {
    #[component(name = "unavailable")]
    Unavailable(String),
}

type Params<'a> = (BatchColumns<'a>,);
type Return = (Result<AnswerColumns, BatchError>,);

/// One call of `process`.
pub(crate) struct Process(Arc<ColumnBatch>, Option<Box<StateAttempt>>);

impl GuestCall for Process {
    type Output = (Answer, Option<Box<StateAttempt>>);
    const INTERFACE: Interface = Interface::MessageProcessor;
    const FUNCTION: &'static str = "process";

    fn check(guest: &Guest) -> wasmtime::Result<()> {
        guest
            .function
            .typed::<Params<'_>, Return>(&guest.store)
            .map(drop)
    }

    fn batch(&self) -> Option<&Arc<ColumnBatch>> {
        Some(&self.0)
    }

    async fn make(self, guest: &mut Guest) -> wasmtime::Result<Returned<Self::Output>> {
        let function = guest.function.typed::<Params<'_>, Return>(&guest.store)?;
        let batch = (BatchColumns::of(&self.0),);
        guest.store.data_mut().state = self.1;
        let (result,) = function.call_async(&mut guest.store, batch).await?;
        let state = guest.store.data_mut().state.take();
        Ok(match result {
            Ok(answer) => {
                let answer = Answer::from(answer);
                match exceeded(&answer, &guest.store.data().call_limits) {
                    None => Returned::Answer((answer, state)),
                    Some(why) => Returned::Bad(why),
                }
            }
            Err(BatchError::Unavailable(reason)) => Returned::Unavailable(reason),
        })
    }
}

/// Which part of the answer is too large.
fn exceeded(answer: &Answer, limits: &Limits) -> Option<String> {
    let (bytes, outputs) = (answer_bytes(answer), answer.sources.len());
    let (bytes_max, outputs_max) = (limits.answer_bytes_max, limits.answer_outputs_max);
    if bytes > bytes_max {
        return Some(format!("it has {bytes} bytes; the maximum is {bytes_max}"));
    }
    if outputs > outputs_max as usize {
        return Some(format!(
            "it has {outputs} outputs; the maximum is {outputs_max}"
        ));
    }
    None
}

fn answer_bytes(answer: &Answer) -> u64 {
    let details = answer
        .details
        .iter()
        .map(|detail| detail.class.len() + detail.reason.len());
    let names = answer.topic_names.iter().map(String::len);
    (answer.data.len() + details.chain(names).sum::<usize>()) as u64
}

impl From<AnswerColumns> for Answer {
    fn from(columns: AnswerColumns) -> Self {
        Self {
            outcomes: columns.outcomes,
            details: columns.details.into_iter().map(Detail::from).collect(),
            data: columns.data,
            sources: columns.sources,
            topic_names: columns.topic_names,
            topics: columns.topics,
            partitions: columns.partitions,
            keys: columns.keys,
            values: columns.values,
            header_ends: columns.header_ends,
            headers: columns.headers,
            times: columns.times,
        }
    }
}

impl From<DetailRecord> for Detail {
    fn from(detail: DetailRecord) -> Self {
        let DetailRecord {
            message,
            after_ms,
            class,
            reason,
        } = detail;
        Self {
            message,
            after_ms,
            class,
            reason,
        }
    }
}

/// A module in the form of the broker's message processor.
pub(crate) struct Processor(pub(crate) Arc<Pool>);

#[async_trait]
impl BatchHandler for Processor {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        let (answer, _) = self.0.call(Process(Arc::clone(batch), None)).await?;
        Ok(answer)
    }

    fn uses_state(&self) -> bool {
        self.0.uses_state()
    }

    async fn process_with_state(
        &self,
        batch: &Arc<ColumnBatch>,
        state: Box<StateAttempt>,
    ) -> Result<(Answer, Box<StateAttempt>), CallError> {
        let call = Process(Arc::clone(batch), Some(state));
        let (answer, state) = self.0.call(call).await?;
        let lost = || CallError::Host("the call lost its state".to_owned());
        Ok((answer, state.ok_or_else(lost)?))
    }

    async fn call(&self, batch: &Arc<ColumnBatch>, state: Option<Box<StateAttempt>>) -> Called {
        let (stateful, messages) = (state.is_some(), batch.len());
        let call = Process(Arc::clone(batch), state);
        let (outcome, used) = self.0.measured(call, messages).await;
        let outcome = match outcome {
            Ok((_, None)) if stateful => Err(CallError::Host("the call lost its state".to_owned())),
            outcome => outcome,
        };
        Called { outcome, used }
    }
}
