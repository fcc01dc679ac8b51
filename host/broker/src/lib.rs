//! The broker: topics, messages in and out, modules, processors, and what happens to every message that they process.
//!
//! [`Broker`] is the shared handle. A message arrives through [`produce`](Broker::produce), a worker of `dispatch` passes it to a
//! [`handler`] in a batch, and the handler's answer is committed in one step.
//!
//! It does not know WebAssembly, HTTP or sockets: modules are anything that implements the traits of [`handler`], storage is anything
//! that implements [`millrace_engine::Engine`].

#![forbid(unsafe_code)]

mod beginning;
mod broker;
mod canary;
mod catalogue;
mod chains;
mod columns;
mod consumers;
mod dead_letters;
mod delays;
mod dispatch;
mod fetch;
mod gone;
mod growth;
pub mod handler;
mod history;
mod holding;
mod hosts;
mod interrupting;
mod lifetime;
mod loading;
mod modules;
mod next_spec;
mod packing;
mod parked;
mod partitioner;
mod placement;
mod processors;
mod produce;
mod replay;
mod schedules;
mod shadow;
mod states;
mod tasks;
mod topics;

pub use beginning::BeginAt;
pub use broker::{Broker, BrokerLimits};
pub use canary::CanaryStatus;
pub use consumers::{
    ConsumerCommit, ConsumerError, ConsumerPlace, ConsumerStatus, HeldConsumer, HoldRequest,
    ReaderStatus,
};
pub use dead_letters::{
    AuditAction, AuditEntry, AuditPage, DeadLetter, DeadLetterError, DeadLetterFilter,
    DeadLetterGroup, DeadLetterGroups, DeadLetterPage, DeadLetterPlace, DeadLetterQuery, Digests,
    DryRun, DryRunOutcome, DryRunOutput, DryRunRequest, EditDigests, HeaderFilter, LetterEdit,
    RedriveRequest, RedriveWhich, Redriven, Redrives,
};
pub use delays::{
    DelayedError, DelayedId, DelayedMessage, DelayedPage, DelayedQuery, DelaysFull, DueAt,
    NotADelayedId,
};
pub use dispatch::breaker::BreakerStatus;
pub use dispatch::comparison::{Said, SaidOutput, ShadowReport, ShadowSample};
pub use dispatch::sides::SideStatus;
pub use fetch::{FetchError, FetchRequest, FetchResult, Fetched};
pub use growth::{ChangedTopic, Growth, KeyedUse};
pub use handler::{
    AdmitError, CallError, CallUse, Cause, GuestLine, Interface, ModuleFacts, ModuleHost, Uploader,
};
pub use lifetime::{Before, TopicChangeError, TopicPatch, TopicTrimError};
/// What a processor keeps beside its progress.
pub use millrace_engine::state;
pub use modules::{Module, ModuleError};
pub use next_spec::{NextSpec, merge};
pub use parked::{ParkedAction, ParkedDone, ParkedMessage, ParkedPage, ParkedQuery, WhichParked};
pub use processors::{LeftBehind, PartitionStatus, ProcessorError, ProcessorStatus};
pub use produce::{CallKey, NewMessage, Placed, ProduceError, Produced};
pub use replay::ReplayRequest;
pub use schedules::{ScheduleError, ScheduleStatus};
pub use states::{StateAccessError, StateHolding, StatePlace};
pub use topics::{Loss, NewTopic, TopicCreateError, TopicDeleteError};
