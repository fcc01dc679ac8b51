//! `error-handler`: failures in, one decision for each out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use millrace_broker::handler::{CallError, Cause, Decision, Failure, FailureHandler, Interface};
use millrace_model::ColumnBatch;
use wasmtime::component::{ComponentType, Lift, Lower};

use super::BatchColumns;
use crate::call::{GuestCall, Returned};
use crate::pool::{Guest, Pool};

/// `error-handler.cause`.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
enum CauseCode {
    #[component(name = "retry")]
    Retry,
    #[component(name = "reject")]
    Reject,
    #[component(name = "trap")]
    Trap,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "memory")]
    Memory,
    #[component(name = "bad-answer")]
    BadAnswer,
}

/// `error-handler.failure`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct FailureRecord<'a> {
    message: u32,
    revision: u32,
    attempt: u32,
    #[component(name = "first-failed-at")]
    first_failed_at: u64,
    cause: CauseCode,
    class: &'a str,
    reason: &'a str,
}

/// `error-handler.decision`.
#[derive(ComponentType, Lift)]
#[component(variant)]
enum DecisionCode {
    #[component(name = "retry-after")]
    RetryAfter(u64),
    #[component(name = "dead-letter")]
    DeadLetter,
    #[component(name = "drop")]
    Drop(String),
    #[component(name = "policy")]
    Policy,
}

type Params<'a> = (Vec<FailureRecord<'a>>, BatchColumns<'a>);
type Return = (Vec<DecisionCode>,);

/// One call of `handle`.
pub(crate) struct Handle {
    pub(crate) failures: Vec<Failure>,
    pub(crate) messages: Arc<ColumnBatch>,
}

impl GuestCall for Handle {
    type Output = Vec<Decision>;
    const INTERFACE: Interface = Interface::ErrorHandler;
    const FUNCTION: &'static str = "handle";

    fn check(guest: &Guest) -> wasmtime::Result<()> {
        guest
            .function
            .typed::<Params<'_>, Return>(&guest.store)
            .map(drop)
    }

    async fn make(self, guest: &mut Guest) -> wasmtime::Result<Returned<Vec<Decision>>> {
        let function = guest.function.typed::<Params<'_>, Return>(&guest.store)?;
        let failures = self.failures.iter().map(FailureRecord::of).collect();
        let params = (failures, BatchColumns::of(&self.messages));
        let (decisions,) = function.call_async(&mut guest.store, params).await?;
        Ok(Returned::Answer(
            decisions.into_iter().map(Decision::from).collect(),
        ))
    }
}

impl<'a> FailureRecord<'a> {
    fn of(failure: &'a Failure) -> Self {
        Self {
            message: failure.message,
            revision: failure.revision,
            attempt: failure.attempt,
            first_failed_at: failure.first_failed_at.0,
            cause: failure.cause.into(),
            class: &failure.class,
            reason: &failure.reason,
        }
    }
}

impl From<Cause> for CauseCode {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Retry => Self::Retry,
            Cause::Reject => Self::Reject,
            // What ends the host is a trap that was not caught; error handlers learn neither of that nor of what an operator gives up.
            Cause::Trap | Cause::HostDied | Cause::GivenUp => Self::Trap,
            Cause::Timeout => Self::Timeout,
            Cause::Memory => Self::Memory,
            Cause::BadAnswer => Self::BadAnswer,
        }
    }
}

impl From<DecisionCode> for Decision {
    fn from(code: DecisionCode) -> Self {
        match code {
            DecisionCode::RetryAfter(delay_ms) => Self::RetryAfter(Duration::from_millis(delay_ms)),
            DecisionCode::DeadLetter => Self::DeadLetter,
            DecisionCode::Drop(reason) => Self::Drop(reason),
            DecisionCode::Policy => Self::Policy,
        }
    }
}

/// A module in the form of the broker's error handler.
pub(crate) struct ErrorHandler(pub(crate) Arc<Pool>);

#[async_trait]
impl FailureHandler for ErrorHandler {
    async fn handle(
        &self,
        failures: &[Failure],
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<Decision>, CallError> {
        let (failures, messages) = (failures.to_vec(), Arc::clone(messages));
        self.0.call(Handle { failures, messages }).await
    }
}
