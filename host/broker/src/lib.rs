//! The broker: topics, messages in and out, modules, processors, and what happens to every message that they process.
//!
//! [`Broker`] starts and stops it all; [`Session`] has the verbs, for one caller. A message arrives through
//! [`produce`](Messages::produce), a worker of `dispatch` passes it to a [`handler`] in a batch, and the handler's answer is committed
//! in one step.
//!
//! The rooms, each of which uses only those below it: `broker`, `session`, `routes`, `schedules`, `dead_letters`, `processors`, `dispatch`,
//! `groups`, `audit`, `messages`, `access`, `catalogue`, `hosts`, `ground`, `handler`.
//!
//! It does not know WebAssembly, HTTP or sockets: modules are anything that implements the traits of [`handler`], storage is anything
//! that implements [`millrace_engine::Engine`].

#![forbid(unsafe_code)]

mod access;
mod audit;
mod broker;
mod catalogue;
mod dead_letters;
mod dispatch;
mod ground;
mod groups;
pub mod handler;
mod hosts;
mod messages;
mod processors;
mod routes;
mod schedules;
mod session;

pub use access::attempts::Attempts;
pub use access::checking::Allowed;
pub use access::error::PrincipalError;
pub use access::first::First;
pub use access::handle::Access;
pub use access::passwords::{ScramChallenge, SetPassword};
pub use access::presented::Presented;
pub use access::proving::{Proved, Unproved};
pub use access::scram::{ScramError, scram_nonce};
pub use access::secret::{PasswordText, TokenText};
pub use access::tokens::{MadeToken, NewToken};
pub use audit::log::AuditLog;
pub use audit::reading::{AuditQuery, AuditRecords};
pub use audit::record::{AuditRecord, AuditResult};
pub use broker::{Broker, BrokerLimits};
pub use catalogue::admissions::{Admission, REFUSALS_REMEMBERED_MAX, Refusal};
pub use catalogue::growth::{ChangedTopic, Growth, KeyedUse};
pub use catalogue::handle::Catalogue;
pub use catalogue::left_behind::LeftBehind;
pub use catalogue::lifetime::{Before, TopicChangeError, TopicPatch, TopicTrimError};
pub use catalogue::modules::{Module, ModuleError, Upload, Uploading};
pub use catalogue::policy::ModulePolicy;
pub use catalogue::signatures::{
    DistrustError, KeyId, ModuleSignature, SIGNATURE_BYTES_MAX, SignatureError, SignaturePolicy,
    TrustedKey,
};
pub use catalogue::tags::{VersionOrder, is_tag};
pub use catalogue::topics::{Loss, NewTopic, TopicCreateError, TopicDeleteError};
pub use catalogue::unknown::{UnknownPartition, UnknownTopic, known_partition};
pub use dead_letters::audit::{AuditAction, AuditEntry, AuditPage, Digests, EditDigests};
pub use dead_letters::dry_run::{DryRun, DryRunOutcome, DryRunOutput, DryRunRequest};
pub use dead_letters::edit::LetterEdit;
pub use dead_letters::filter::{DeadLetterFilter, HeaderFilter, Redrives};
pub use dead_letters::handle::DeadLetters;
pub use dead_letters::letters::{DeadLetter, DeadLetterError};
pub use dead_letters::listing::{
    DeadLetterGroup, DeadLetterGroups, DeadLetterPage, DeadLetterQuery,
};
pub use dead_letters::redrive::{RedriveRequest, RedriveWhich, Redriven};
pub use dispatch::breaker::BreakerStatus;
pub use dispatch::comparison::{Said, SaidOutput, ShadowReport, ShadowSample};
pub use dispatch::orders::ParkedAction;
pub use dispatch::rehearsal::{
    Rehearsal, Rehearsed, RehearsedCall, RehearsedMessage, RehearsedOutput, batch_of,
};
pub use dispatch::sides::SideStatus;
pub use ground::caller::Caller;
pub use ground::keys::{KeyPattern, is_for_some_keys, may_touch};
pub use ground::meters::{Meters, OverQuota};
pub use ground::standing::{Forbidden, Known, Standing, decide};
pub use ground::verbs::Verb;
pub use groups::consumers::HeldConsumer;
pub use groups::error::ConsumerError;
pub use groups::handle::Groups;
pub use groups::positions::{GroupPosition, NewPosition};
pub use groups::shapes::{
    ConsumerCommit, ConsumerPlace, ConsumerStatus, HoldRequest, ReaderStatus,
};
pub use handler::{
    AdmitError, CallError, CallUse, Cause, Compiling, Dependency, GuestLine, HTTP_BODY_PARTS_MAX,
    HttpAnswer, HttpBody, HttpHeaders, HttpPart, HttpRequest, Interface, Metadata, ModuleFacts,
    ModuleHost, Producer, RegistryFact, Uploader,
};
pub use messages::append::{AppendRequest, Appended};
pub use messages::beginning::BeginAt;
pub use messages::call::{CallKey, NewMessage, Placed, Produced};
pub use messages::delays::delayed::{
    DelayedError, DelayedMessage, DelayedPage, DelayedQuery, DelaysFull,
};
pub use messages::delays::stored::{DelayedId, DueAt, NotADelayedId};
pub use messages::fetch::{FetchError, FetchRequest, FetchResult, Fetched};
pub use messages::handle::Messages;
pub use messages::place::MessagePlace;
pub use messages::produce_error::ProduceError;
pub use messages::read::{ReadRequest, ReadResult};
pub use messages::subscription::{Delivery, SubscribeError, Subscription, SubscriptionError};
/// The state of a processor, stored beside its progress.
pub use millrace_engine::state;
pub use processors::canary::{CanaryStatus, TrialSeen};
pub use processors::error::ProcessorError;
pub use processors::handle::Processors;
pub use processors::next_spec::{ConfigChange, NextSpec, merge};
pub use processors::parked::{ParkedDone, ParkedMessage, ParkedPage, ParkedQuery, WhichParked};
pub use processors::replay::ReplayRequest;
pub use processors::states::{StateAccessError, StateHolding, StatePlace};
pub use processors::status::{PartitionStatus, ProcessorStatus};
pub use routes::canary::RouteSideStatus;
pub use routes::error::RouteError;
pub use routes::handle::Routes;
pub use routes::keeping::{RouteCanaryStatus, RouteStatus};
pub use routes::rehearsal::RouteRehearsal;
pub use routes::serving::{ServeError, Served};
pub use schedules::handle::Schedules;
pub use schedules::keeping::ScheduleError;
pub use schedules::known::ScheduleStatus;
pub use session::Session;
