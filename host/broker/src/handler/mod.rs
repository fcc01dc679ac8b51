//! A module as the broker sees it: something that processes batches, chooses partitions or decides about failures. `millrace-wasm`
//! implements these traits for components; tests and the bench implement them by hand.

mod access;
mod called;
mod http;
mod live_config;
mod metadata;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_engine::state::StateAttempt;
use millrace_model::processor::{Grants, Limits};
use millrace_model::{
    Advice, Advised, Answer, Code, ColumnBatch, Digest, GuestLimits, ProcessorName, RoutePath,
    Timestamp,
};
use serde::{Deserialize, Serialize};

pub use access::{AccessError, Outgoing, RouteAccess, Sent, SentPlace, View};
pub use called::{CallLog, CallUse, Called};
pub use http::{
    HTTP_BODY_PARTS_MAX, HttpAnswer, HttpBody, HttpHandler, HttpHeaders, HttpPart, HttpRequest,
};
pub use live_config::LiveConfig;
pub use metadata::{Dependency, Metadata, Producer, RegistryFact};

/// One of the interfaces that a component may export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interface {
    /// Processes batches.
    MessageProcessor,
    /// Chooses partitions.
    Partitioner,
    /// Decides about failures.
    ErrorHandler,
    /// Answers HTTP requests.
    HttpHandler,
}

impl Interface {
    /// Its name in WIT.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MessageProcessor => "millrace:broker/message-processor",
            Self::Partitioner => "millrace:broker/partitioner",
            Self::ErrorHandler => "millrace:broker/error-handler",
            Self::HttpHandler => "wasi:http/incoming-handler",
        }
    }

    /// Several, for people.
    #[must_use]
    pub fn listed(interfaces: &[Self]) -> String {
        let names: Vec<&str> = interfaces.iter().map(|one| one.as_str()).collect();
        match names.is_empty() {
            true => "none of our interfaces".to_owned(),
            false => names.join(" and "),
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What admission found out about a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleFacts {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// Bytes of the component as uploaded.
    pub byte_count: u64,
    /// Its exported interfaces.
    pub exports: Vec<Interface>,
    /// What it imports, as `package/interface@version`.
    pub imports: Vec<String>,
    /// How long the compiler process took.
    pub compile_ms: u64,
    /// How long the upload waited for its turn to be compiled.
    #[serde(default)]
    pub waited_ms: u64,
    /// What it says about itself.
    #[serde(default)]
    pub metadata: Metadata,
}

/// Who uploads, as far as the host can tell. Uploaders take turns to compile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uploader {
    /// The client's address.
    pub address: Option<IpAddr>,
    /// The name that it claims.
    pub name: String,
}

impl fmt::Display for Uploader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), self.address) {
            ("", None) => f.write_str("this host"),
            (name, None) => f.write_str(name),
            ("", Some(address)) => write!(f, "{address}"),
            (name, Some(address)) => write!(f, "{name} at {address}"),
        }
    }
}

/// Why an upload was not admitted. The host is unharmed and nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// Larger than the bound.
    #[error("the module has {}the maximum is {max} (setting module_bytes_max = {max})",
        .bytes.map_or_else(|| "too many bytes; ".to_owned(), |bytes| format!("{bytes} bytes; ")))]
    TooLarge {
        /// Its size, if it is known.
        bytes: Option<u64>,
        /// The bound.
        max: u64,
    },
    /// Not a WASM component; the text says what it is and what to do.
    #[error("{0}")]
    NotAComponent(String),
    /// Invalid, or over a structural limit.
    #[error("the component is not valid here: {0}")]
    Invalid(String),
    /// It exports none of our interfaces.
    #[error(
        "the component exports none of {wanted}; it exports {found}. Build it against wit/ of this host"
    )]
    MissingExport {
        /// The interfaces it could export.
        wanted: String,
        /// Its exports.
        found: String,
    },
    /// It imports something that is not granted.
    #[error("the component imports interfaces that are not granted: {}. Build it without them, or with granted interfaces", .imports.join(", "))]
    UngrantedImports {
        /// Each such import.
        imports: Vec<String>,
    },
    /// It imports more than its processor or route is granted.
    #[error(
        "the component imports {}, which it is not granted. Grant it: {command}", .imports.join(", ")
    )]
    NotGranted {
        /// Each such import.
        imports: Vec<String>,
        /// The command that grants them.
        command: String,
    },
    /// Compiling exceeded its limit.
    #[error(
        "compiling the component exceeded its limit ({0}); simplify the code or build it with optimisation"
    )]
    CompileLimit(String),
    /// It compiles but does not start within the limits.
    #[error("the component does not start: {0}")]
    Start(String),
    /// No space on the disk for the compiled code.
    #[error("the disk is full: free some space and upload the component again; nothing was stored")]
    DiskFull,
    /// The host is stopping.
    #[error("the host is stopping; nothing was stored")]
    Stopping,
    /// Other modules are compiled first; nothing was found out about this one.
    #[error("{reason}; nothing was stored")]
    Busy {
        /// What it would have to wait for.
        reason: String,
        /// When to try again.
        retry_after_s: u32,
    },
    /// An internal error.
    #[error("admission itself failed: {0}; try again, and see the host's log")]
    Host(String),
}

impl Advised for AdmitError {
    fn advice(&self) -> Advice {
        match self {
            Self::TooLarge { .. } => Code::TooLarge.hint(
                "strip debug information or reduce its size, or start the host with a larger --module-bytes-max",
            ),
            Self::NotAComponent(_) => Code::NotAComponent.advice(),
            Self::Invalid(_) => Code::InvalidComponent.advice(),
            Self::MissingExport { .. } => Code::MissingExport.advice(),
            Self::UngrantedImports { .. } => Code::UngrantedImport.advice(),
            Self::NotGranted { command, .. } => Code::NotGranted.hint(format!(
                "if the component may have this, run `{command}`, or add these flags to the first deployment; over HTTP, set the field grants"
            )),
            Self::CompileLimit(_) => Code::CompileLimit.advice(),
            Self::Start(_) => Code::DoesNotStart.advice(),
            Self::Busy { retry_after_s, .. } => Code::Occupied
                .hint("send it again after the delay in Retry-After")
                .after_s(*retry_after_s),
            Self::DiskFull => Code::DiskFull.advice(),
            Self::Stopping => Code::Stopping.advice(),
            Self::Host(_) => Code::Internal.advice(),
        }
    }
}

/// Why a handler could not answer a call. The guest's errors and the host's never share a variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The guest says that something outside is down.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The guest trapped.
    #[error("trap: {message}")]
    Trap {
        /// The message, on one line.
        message: String,
        /// Function names, innermost first, as far as known.
        backtrace: String,
    },
    /// The guest did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The guest failed after it asked for more memory than it may have.
    #[error("out of memory: {0}")]
    Memory(String),
    /// The answer is malformed or exceeds a bound.
    #[error("bad answer: {0}")]
    BadAnswer(String),
    /// The result was no longer useful, or the host is stopping. This says nothing about the guest or its messages.
    #[error("the call was interrupted because the host is stopping")]
    Interrupted,
    /// An internal error; no attempt is spent.
    #[error("the host could not make the call: {0}")]
    Host(String),
}

/// Processes batches. Called for one batch of one partition at a time; calls for different partitions may run at once.
#[async_trait]
pub trait BatchHandler: Send + Sync + 'static {
    /// Processes a batch. The answer is unchecked: the caller checks it.
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError>;

    /// Whether it reads or writes state. If so, it is called with state.
    fn uses_state(&self) -> bool {
        false
    }

    /// Processes a batch with the state of its partition; the writes are returned with the answer, and discarded after a failure.
    async fn process_with_state(
        &self,
        batch: &Arc<ColumnBatch>,
        state: Box<StateAttempt>,
    ) -> Result<(Answer, Box<StateAttempt>), CallError> {
        Ok((self.process(batch).await?, state))
    }

    /// Processes a batch, with state if there is any, and returns what that used.
    async fn call(&self, batch: &Arc<ColumnBatch>, state: Option<Box<StateAttempt>>) -> Called {
        let outcome = match state {
            None => self.process(batch).await.map(|answer| (answer, None)),
            Some(state) => {
                let answered = self.process_with_state(batch, state).await;
                answered.map(|(answer, state)| (answer, Some(state)))
            }
        };
        Called {
            outcome,
            used: None,
        }
    }
}

/// Chooses partitions.
#[async_trait]
pub trait PartitionHandler: Send + Sync + 'static {
    /// The partition of each message; the caller checks number and range.
    async fn assign(
        &self,
        partitions: u32,
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<u32>, CallError>;
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The handler asked for a retry.
    Retry,
    /// The handler rejected the message.
    Reject,
    /// [`CallError::Trap`].
    Trap,
    /// [`CallError::Timeout`].
    Timeout,
    /// [`CallError::Memory`].
    Memory,
    /// [`CallError::BadAnswer`].
    BadAnswer,
    /// The host ended repeatedly while processing the message. Error handlers are not called for this.
    HostDied,
    /// An operator gave the message up. Error handlers are not called for this.
    GivenUp,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 8] = [
        Self::Retry,
        Self::Reject,
        Self::Trap,
        Self::Timeout,
        Self::Memory,
        Self::BadAnswer,
        Self::HostDied,
        Self::GivenUp,
    ];

    /// The cause's word in headers, metrics and WIT.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Reject => "reject",
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::BadAnswer => "bad-answer",
            Self::HostDied => "host-died",
            Self::GivenUp => "given-up",
        }
    }
}

/// One failed message, in the form for an error handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its index in the batch passed along.
    pub message: u32,
    /// The revision that failed.
    pub revision: u32,
    /// Attempts so far, of all revisions, including this one.
    pub attempt: u32,
    /// When the first one failed.
    pub first_failed_at: Timestamp,
    /// The cause.
    pub cause: Cause,
    /// A short word for grouping.
    pub class: String,
    /// An explanation for people.
    pub reason: String,
}

/// What to do with a failed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again after this delay.
    RetryAfter(Duration),
    /// Give it up.
    DeadLetter,
    /// Drop it, for this reason.
    Drop(String),
    /// Follow the retry policy.
    Policy,
}

/// Decides about failures.
#[async_trait]
pub trait FailureHandler: Send + Sync + 'static {
    /// One decision per failure, in order; the caller checks the number.
    async fn handle(
        &self,
        failures: &[Failure],
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<Decision>, CallError>;
}

/// A module and what it is loaded for: names its log lines and metrics, and bounds its calls.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// The module's digest.
    pub digest: Digest,
    /// Its bytes, in case they must be compiled again.
    pub bytes: Bytes,
    /// The processor, or the topic for a partitioner.
    pub owner: String,
    /// The processor's revision; 0 for a partitioner.
    pub revision: u32,
    /// The limits of a call.
    pub limits: Limits,
    /// What it may use.
    pub grants: Grants,
    /// Its settings.
    pub config: LiveConfig,
    /// What a route may do besides answering; `None` for everything else.
    pub access: Option<Arc<dyn RouteAccess>>,
}

/// A module that is being compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiling {
    /// Since when it is needed.
    pub since: Timestamp,
    /// When the compiler began; `None` while the module waits for its turn.
    pub begun_at: Option<Timestamp>,
}

/// Admits and loads modules.
#[async_trait]
pub trait ModuleHost: Send + Sync + 'static {
    /// Checks and compiles an upload.
    async fn admit(&self, bytes: Bytes, uploader: Uploader) -> Result<ModuleFacts, AdmitError>;

    /// The limits of modules on this host.
    fn limits(&self) -> GuestLimits {
        GuestLimits::default()
    }

    /// How far the compile of a module is, if there is one.
    fn compiling(&self, _digest: Digest) -> Option<Compiling> {
        None
    }

    /// A message processor, ready to be called.
    async fn processor(&self, request: LoadRequest) -> Result<Arc<dyn BatchHandler>, AdmitError>;

    /// A partitioner, ready to be called.
    async fn partitioner(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn PartitionHandler>, AdmitError>;

    /// An error handler, ready to be called.
    async fn error_handler(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn FailureHandler>, AdmitError>;

    /// A component that answers HTTP requests, ready to be called.
    async fn http_handler(&self, request: LoadRequest) -> Result<Arc<dyn HttpHandler>, AdmitError> {
        let owner = request.owner;
        Err(AdmitError::Host(format!(
            "{owner}: this host runs no components that answer HTTP requests"
        )))
    }

    /// Removes what is stored of a deleted module besides its bytes, such as compiled code. Loaded handlers continue.
    fn forget(&self, digest: Digest);

    /// Log lines of a processor's guests, newest last, as far as they are kept.
    fn logs(&self, processor: &ProcessorName) -> Vec<GuestLine>;

    /// How many lines of a processor's guests were dropped since the start because of their rate.
    fn lines_dropped(&self, _processor: &ProcessorName) -> u64 {
        0
    }

    /// Forgets the lines of a deleted processor.
    fn forget_logs(&self, _processor: &ProcessorName) {}

    /// Log lines of a route's guests, newest last, as far as they are kept.
    fn route_logs(&self, _route: &RoutePath) -> Vec<GuestLine> {
        Vec::new()
    }

    /// Forgets the lines of a deleted route.
    fn forget_route_logs(&self, _route: &RoutePath) {}
}

/// A log line of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestLine {
    /// Its time, in milliseconds since the Unix epoch.
    pub at: Timestamp,
    /// `error`, `warn`, `info` or `debug`.
    pub level: String,
    /// The revision that logged it.
    pub revision: u32,
    /// The text, cut to a maximum length and without control characters.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_named_as_in_wit_wherever_people_read_of_them() {
        let needs = Interface::Partitioner;
        assert_eq!(needs.to_string(), "millrace:broker/partitioner");
        let has = [Interface::MessageProcessor, Interface::HttpHandler];
        assert_eq!(
            Interface::listed(&has),
            "millrace:broker/message-processor and wasi:http/incoming-handler"
        );
        assert_eq!(Interface::listed(&[]), "none of our interfaces");
        let error = crate::ProcessorError::WrongInterface {
            digest: Digest([7; 32]),
            needs,
            has: has.to_vec(),
        };
        let text = error.to_string();
        assert!(
            !text.contains("Interface") && !text.contains("MessageProcessor"),
            "{text}"
        );
        assert!(text.contains("wasi:http/incoming-handler"), "{text}");
    }
}
