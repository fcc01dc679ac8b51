//! The one shape of all errors: a code for programs, a message for people, and what to do now.

mod topics;

use axum::Json;
use axum::http::header::{ACCEPT_ENCODING, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use millrace_broker::{
    AdmitError, CallError, DeadLetterError, FetchError, ModuleError, ProcessorError, ProduceError,
    SubscribeError,
};
use millrace_engine::{CommitError, Kept, ReadError, RoomFull};
use millrace_model::NameError;
use serde::Serialize;
use utoipa::ToSchema;

/// An error answer: what went wrong and what to do.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: String,
    retry_after_s: Option<u32>,
    next: Option<u64>,
    partition: Option<u32>,
    /// The accepted codings of bodies, after a refused one.
    accepted_encodings: Option<&'static str>,
}

/// The shape on the wire.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Serialize, ToSchema)]
struct ErrorDetail {
    /// Stable, for programs.
    #[schema(example = "unknown-topic")]
    code: String,
    /// What went wrong.
    message: String,
    /// What to do now.
    hint: String,
    /// Where to continue, after messages that cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u64>,
    /// The partition it applies to, if several were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
}

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            hint: hint.into(),
            retry_after_s: None,
            next: None,
            partition: None,
            accepted_encodings: None,
        }
    }

    /// The message and the hint, for use outside of an answer.
    pub(crate) fn into_parts(self) -> (String, String) {
        (self.message, self.hint)
    }

    /// Code, message and where to continue, for use as a part of an answer.
    pub(crate) fn into_problem(self) -> (&'static str, String, Option<u64>) {
        (self.code, self.message, self.next)
    }

    /// Adds the partition.
    pub(crate) fn of_partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self.at(&format!("partition {partition}"))
    }

    /// Adds the accepted codings of bodies.
    pub(crate) fn accepting(mut self, encodings: &'static str) -> Self {
        self.accepted_encodings = Some(encodings);
        self
    }

    /// The message, for use outside of an answer.
    pub(crate) fn into_message(self) -> String {
        self.message
    }

    pub(crate) fn malformed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message, hint)
    }

    pub(crate) fn unknown(code: &'static str, message: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message, hint)
    }

    pub(crate) fn conflict(code: &'static str, message: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::CONFLICT, code, message, hint)
    }

    /// Adds the number of seconds after which to try again.
    pub(crate) fn retrying_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        self
    }

    pub(crate) fn too_large(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message, hint)
    }

    pub(crate) fn refused(code: &'static str, message: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message, hint)
    }

    pub(crate) fn unavailable(
        code: &'static str,
        message: impl Into<String>,
        hint: &str,
        retry_after_s: u32,
    ) -> Self {
        Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message, hint)
        }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        tracing::error!(%message, "a request failed with an internal error");
        let hint = "see the host's log; it contains the x-request-id of this answer";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, hint)
    }

    pub(crate) fn is_too_large(&self) -> bool {
        self.status == StatusCode::PAYLOAD_TOO_LARGE
    }

    /// Replaces the hint.
    pub(crate) fn advising(mut self, hint: &str) -> Self {
        hint.clone_into(&mut self.hint);
        self
    }

    /// Adds the place in the request.
    pub(crate) fn at(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// Adds the line of the request; keeps the column, and replaces the line that the parser counted.
    pub(crate) fn at_line(mut self, line: usize) -> Self {
        self.message = self.message.replace(" at line 1 column ", " at column ");
        self.at(&format!("line {line}"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = ErrorDetail {
            code: self.code.to_owned(),
            message: self.message,
            hint: self.hint,
            next: self.next,
            partition: self.partition,
        };
        let mut response = (self.status, Json(ErrorBody { error })).into_response();
        if let Some(seconds) = self.retry_after_s {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(encodings) = self.accepted_encodings {
            let headers = response.headers_mut();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(encodings));
        }
        response
    }
}

pub(crate) async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let message = format!("there is no {method} {}", uri.path());
    ApiError::unknown(
        "unknown-route",
        message,
        "GET /openapi.json lists all routes",
    )
}

pub(crate) async fn unknown_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    let hint = "GET /openapi.json lists the methods it accepts";
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "unknown-method",
        message,
        hint,
    )
}

const LIST_TOPICS: &str = "GET /v1/topics or `millrace topic list` shows the topics that exist";
const LIST_MODULES: &str = "GET /v1/modules or `millrace module list` shows the modules that exist";
const LIST_PROCESSORS: &str =
    "GET /v1/processors or `millrace processor list` shows the processors that exist";
const SEE_ENDS: &str =
    "GET /v1/topics/{topic} or `millrace topic show` shows where each partition starts and ends";
const SMALLER: &str = "send less per request";

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        let hint = "use letters, digits, '.', '_' and '-'";
        Self::new(StatusCode::BAD_REQUEST, "bad-name", error.to_string(), hint)
    }
}

impl From<CommitError> for ApiError {
    fn from(error: CommitError) -> Self {
        let text = error.to_string();
        match error {
            CommitError::UnknownPartition(_) => {
                Self::unknown("unknown-partition", text, LIST_TOPICS)
            }
            CommitError::Fenced { .. } => Self::conflict(
                "fenced",
                text,
                "another worker took over this partition meanwhile; try again",
            ),
            CommitError::Conflict(_) => Self::conflict(
                "changed-meanwhile",
                text,
                "read it again, and repeat the request if it is still what you want",
            ),
            CommitError::OutOfOrderSequence { .. } => {
                let hint = "send the batches in order, or number from 0 in a new epoch";
                Self::conflict("out-of-order-sequence", text, hint)
            }
            CommitError::ProducerFenced { .. } => Self::conflict(
                "producer-fenced",
                text,
                "stop; a newer producer uses this id",
            ),
            CommitError::UnknownProducer(_) => Self::unknown(
                "unknown-producer",
                text,
                "request a new id, and number from 0",
            ),
            CommitError::PartlyRepeated { .. } => {
                let hint = "repeat the call exactly as it was the first time";
                Self::conflict("partly-repeated", text, hint)
            }
            CommitError::ProducerName { .. } => {
                Self::refused("bad-producer-name", text, "choose another name")
            }
            CommitError::RequestReused => {
                let hint = "use a new Idempotency-Key for this call; the first call stands";
                Self::refused("idempotency-key-reused", text, hint)
            }
            CommitError::TooLarge { .. } => Self::too_large(text, SMALLER),
            CommitError::RoomFull(full) => room_full(&full),
            CommitError::State(_) => Self::unavailable("state-busy", text, "try again", 5),
            CommitError::DiskFull => Self::unavailable(
                "disk-full",
                text,
                "free space on the host, then try again",
                10,
            ),
            CommitError::Unavailable(_) => {
                Self::unavailable("store-unavailable", text, "try again", 1)
            }
            CommitError::InDoubt(_) => Self::unavailable(
                "in-doubt",
                text,
                "check whether it took effect; a call with an Idempotency-Key can be repeated with the same key",
                1,
            ),
            CommitError::Poisoned(_) => Self::unavailable(
                "engine-poisoned",
                text,
                "restart the host, then try again",
                30,
            ),
            CommitError::Closed => {
                Self::unavailable("stopping", text, "try again when the host is up", 1)
            }
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        let text = error.to_string();
        match error {
            ReadError::UnknownPartition(_) => Self::unknown("unknown-partition", text, LIST_TOPICS),
            ReadError::BelowStart { start, .. } => Self {
                next: Some(start.0),
                ..Self::unknown("offset-not-kept", text, "continue with from=earliest")
            },
            ReadError::PastEnd { .. } => Self::unknown(
                "offset-past-end",
                text,
                "continue with from=latest, or wait; write a time as from_time=2026-11-21T10:00:00Z",
            ),
            ReadError::Damaged { to, .. } => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                let hint = format!(
                    "continue with from={to}; the rest of the partition is sound. GET /v1/damage lists all damage"
                );
                Self {
                    next: Some(to.0),
                    ..Self::new(status, "damaged", text, hint)
                }
            }
            ReadError::ModuleDamaged(_) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Self::new(
                    status,
                    "module-damaged",
                    text,
                    "POST /v1/modules with the same bytes repairs it",
                )
            }
            ReadError::Unavailable(_) => {
                Self::unavailable("store-unavailable", text, "try again", 1)
            }
            ReadError::Io(_) => Self::internal(text),
        }
    }
}

impl From<ProduceError> for ApiError {
    fn from(error: ProduceError) -> Self {
        let text = error.to_string();
        match error {
            ProduceError::UnknownTopic(_) => Self::unknown(
                "unknown-topic",
                text,
                "POST /v1/topics or `millrace topic create` creates it",
            ),
            ProduceError::UnknownPartition { .. } => {
                let hint = "omit the partition to let the topic's partitioner choose";
                Self::unknown("unknown-partition", text, hint)
            }
            ProduceError::Owned { .. } => {
                Self::refused("owned-topic", text, "produce to another topic")
            }
            ProduceError::KeyMissing { .. } => Self::refused(
                "key-missing",
                text,
                "give every message a key, or turn compaction off",
            ),
            ProduceError::TooLarge { .. }
            | ProduceError::TooManyHeaders { .. }
            | ProduceError::DelayedTooLarge { .. }
            | ProduceError::TooMany { .. }
            | ProduceError::CallTooLarge { .. }
            | ProduceError::Scattered { .. } => Self::too_large(text, SMALLER),
            ProduceError::PlacesLost => Self::internal(text),
            ProduceError::ReservedHeader { .. } => {
                Self::refused("reserved-header", text, "choose another header name")
            }
            ProduceError::TooFar { .. } => Self::refused(
                "too-far-away",
                text,
                "choose an earlier time, or use a schedule for repeated messages",
            ),
            ProduceError::Ahead { .. } => Self::refused(
                "timestamp-ahead",
                text,
                "omit the timestamp, or put future times in a header",
            ),
            ProduceError::OtherUnit { .. } => {
                Self::refused("other-unit", text, "use milliseconds since the Unix epoch")
            }
            ProduceError::DelaysFull(_) => Self {
                code: "delays-full",
                ..busy(text)
            },
            ProduceError::Batch { .. } => {
                let hint = "send complete record batches in Kafka's format, magic 2";
                Self::malformed(text, hint)
            }
            ProduceError::NothingToSend => Self::malformed(text, "send at least one message"),
            ProduceError::Busy { .. } => busy(text),
            ProduceError::Partitioner(CallError::Interrupted) => CommitError::Closed.into(),
            ProduceError::PartitionerGone(_) | ProduceError::Partitioner(_) => {
                partitioner_failed(text)
            }
            ProduceError::Commit(error) => error.into(),
        }
    }
}

/// The host's bound answers like the partition's, and says which one it is.
fn room_full(full: &RoomFull) -> ApiError {
    match full.kept {
        Kept::Delayed => ApiError {
            code: "delays-full",
            ..busy(full.to_string())
        },
        Kept::Consumers | Kept::State => {
            ApiError::refused("state-bound", full.to_string(), "write less")
        }
    }
}

fn busy(text: String) -> ApiError {
    ApiError {
        status: StatusCode::TOO_MANY_REQUESTS,
        ..ApiError::unavailable(
            "busy",
            text,
            "send more slowly; nothing of this request was stored",
            1,
        )
    }
}

fn partitioner_failed(text: String) -> ApiError {
    let hint = "name the partition in the request, or fix the topic's partitioner";
    ApiError::refused("partitioner-failed", text, hint)
}

impl From<FetchError> for ApiError {
    fn from(error: FetchError) -> Self {
        let text = error.to_string();
        match error {
            FetchError::UnknownTopic(_) => Self::unknown("unknown-topic", text, LIST_TOPICS),
            FetchError::UnknownPartition { .. } => {
                Self::unknown("unknown-partition", text, SEE_ENDS)
            }
            FetchError::Read(error) => error.into(),
            FetchError::Malformed { next, .. } => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                let hint = "continue at the offset named";
                Self {
                    next: Some(next.0),
                    ..Self::new(status, "unreadable", text, hint)
                }
            }
        }
    }
}

impl From<SubscribeError> for ApiError {
    fn from(error: SubscribeError) -> Self {
        let text = error.to_string();
        match error {
            SubscribeError::TooMany => Self::refused("too-many-partitions", text, SMALLER),
            SubscribeError::Fetch(error) => error.into(),
        }
    }
}

impl From<AdmitError> for ApiError {
    fn from(error: AdmitError) -> Self {
        let text = error.to_string();
        let refused = |code, hint| Self::refused(code, text.clone(), hint);
        match error {
            AdmitError::TooLarge { .. } => Self::too_large(
                text,
                "strip debug information or reduce its size, or start the host with a larger --module-bytes-max",
            ),
            AdmitError::NotAComponent(_) => {
                refused("not-a-component", "build for the target wasm32-wasip2")
            }
            AdmitError::Invalid(_) => refused(
                "invalid-component",
                "build it for wasm32-wasip2 (WASI 0.2) without what the message names; if the limit is a setting, the host can be given \
                 a larger one",
            ),
            AdmitError::MissingExport { .. } => {
                refused("missing-export", "export one of the interfaces of wit/")
            }
            AdmitError::UngrantedImports { .. } => {
                refused("ungranted-import", "build it without these imports")
            }
            AdmitError::CompileLimit(_) => refused(
                "compile-limit",
                "simplify the code, or build it with optimisation; if the message names a setting, it can be raised at the host",
            ),
            AdmitError::Start(_) => refused(
                "does-not-start",
                "make it start within the limits that the message names, or raise them: `limits` in the processor's specification, or settings \
                 of the host",
            ),
            AdmitError::Busy { retry_after_s, .. } => Self::unavailable(
                "busy",
                text,
                "send it again after the delay in Retry-After",
                retry_after_s,
            ),
            AdmitError::DiskFull => CommitError::DiskFull.into(),
            AdmitError::Stopping => CommitError::Closed.into(),
            AdmitError::Host(_) => Self::internal(text),
        }
    }
}

impl From<ModuleError> for ApiError {
    fn from(error: ModuleError) -> Self {
        let text = error.to_string();
        match error {
            ModuleError::Admit(error) => error.into(),
            ModuleError::Unknown(_) => Self::unknown("unknown-module", text, LIST_MODULES),
            ModuleError::Tag(_) => {
                Self::new(StatusCode::BAD_REQUEST, "bad-tag", text, "write name@1.0.0")
            }
            ModuleError::TagTaken { .. } => Self::conflict(
                "tag-taken",
                text,
                "a tag cannot be moved to another module; choose the next version",
            ),
            ModuleError::TooManyTags(_) => {
                Self::conflict("too-many-tags", text, "GET /v1/modules lists them")
            }
            ModuleError::InUse { .. } => Self::conflict("in-use", text, "stop using it first"),
            ModuleError::Commit(error) => error.into(),
        }
    }
}

impl From<ProcessorError> for ApiError {
    fn from(error: ProcessorError) -> Self {
        let text = error.to_string();
        match error {
            ProcessorError::Unknown(_) => Self::unknown("unknown-processor", text, LIST_PROCESSORS),
            ProcessorError::UnknownTopic(_) => Self::unknown(
                "unknown-topic",
                text,
                "POST /v1/topics or `millrace topic create` creates it",
            ),
            ProcessorError::UnknownModule(_) => Self::unknown("unknown-module", text, LIST_MODULES),
            ProcessorError::WrongInterface { .. } => wrong_interface(text),
            ProcessorError::OtherRevision { .. } => Self::conflict(
                "other-revision",
                text,
                "see which revision is current (GET /v1/processors/{name}/history), and repeat the request with its number as expected_revision",
            ),
            ProcessorError::RolledBackAlready { further, .. } => {
                let further = match further {
                    Some(further) => format!(
                        "to go further back, name the revision: `millrace processor rollback NAME --to {further}`; over HTTP {{\"revision\": {further}}}"
                    ),
                    None => "there is no earlier revision to go back to".to_owned(),
                };
                Self::conflict("rolled-back-already", text, &further)
            }
            ProcessorError::NothingToRollBack(_) => {
                Self::conflict("nothing-to-roll-back", text, "deploy a revision instead")
            }
            ProcessorError::WayBackGone { .. } => Self::conflict(
                "nothing-to-roll-back",
                text,
                "create the missing topics and upload the missing modules again, or deploy a revision instead",
            ),
            ProcessorError::TrialFails { .. } => Self::conflict(
                "trial-fails",
                text,
                "let it be withdrawn and deploy a better one, or promote it anyway: `millrace processor promote NAME --force`; over HTTP {\"force\": true}",
            ),
            ProcessorError::TrialNotLoaded { .. } => Self::conflict(
                "trial-not-loaded",
                text,
                "deploy it again to retry, or end it: `millrace processor rollback`",
            ),
            ProcessorError::NoTrial(_) => Self::conflict(
                "no-trial",
                text,
                "deploy one first: `millrace processor deploy NAME … --canary PERCENT` or `--shadow`; over HTTP with ?canary=PERCENT or ?shadow=true",
            ),
            ProcessorError::NoSuchRevision { .. } => {
                Self::unknown("unknown-revision", text, "name a revision that is kept")
            }
            ProcessorError::Replay(_) => Self::refused(
                "invalid-replay",
                text,
                "change the request; nothing was created",
            ),
            ProcessorError::InvalidSpec(_) => Self::refused(
                "invalid-spec",
                text,
                "change the specification; nothing was deployed",
            ),
            ProcessorError::Admit(error) => error.into(),
            ProcessorError::Commit(error) => error.into(),
            ProcessorError::Topic(error) => error.into(),
            ProcessorError::Read(error) => error.into(),
            ProcessorError::Catalogue(_) => Self::internal(text),
        }
    }
}

fn wrong_interface(text: String) -> ApiError {
    let hint = "GET /v1/modules or `millrace module list` shows what each module exports";
    ApiError::refused("wrong-interface", text, hint)
}

impl From<DeadLetterError> for ApiError {
    fn from(error: DeadLetterError) -> Self {
        let text = error.to_string();
        match error {
            DeadLetterError::UnknownProcessor(_) => {
                Self::unknown("unknown-processor", text, LIST_PROCESSORS)
            }
            DeadLetterError::Deleted(_) => Self::conflict(
                "not-deployed",
                text,
                "deploy it again under this name, then redrive; until then they stay where they are",
            ),
            DeadLetterError::NoSuchDeadLetter { .. } => {
                let hint =
                    "GET /v1/processors/{name}/dead-letters or `millrace dlq list` shows them";
                Self::unknown("unknown-dead-letter", text, hint)
            }
            DeadLetterError::NotAnInput { .. } => {
                let hint = "deploy a revision that reads the topic, then redrive";
                Self::conflict("not-an-input", text, hint)
            }
            DeadLetterError::AlreadySent(_) => {
                let hint = "`millrace dlq list` shows the dead letters";
                Self::conflict("already-sent", text, hint)
            }
            DeadLetterError::Edit(_) => {
                Self::refused("invalid-edit", text, "change the edit; nothing was sent")
            }
            DeadLetterError::Busy => Self {
                retry_after_s: Some(5),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "busy",
                    text,
                    "try again when one of them has ended; nothing was done",
                )
            },
            DeadLetterError::Audit(_) => {
                let hint = "nothing was sent; fix the topic that the message names, then try again";
                Self::conflict("no-audit-trail", text, hint)
            }
            DeadLetterError::Catalogue(_) => Self::internal(text),
            DeadLetterError::Revision(error) => error.into(),
            DeadLetterError::Fetch(error) => error.into(),
            DeadLetterError::Commit(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_has_a_code_a_message_and_a_hint_and_says_when_to_come_back() {
        let response = ApiError::from(CommitError::DiskFull).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "10");
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 10).await;
        let body: serde_json::Value =
            serde_json::from_slice(&bytes.expect("a body")).expect("JSON");
        assert_eq!(body["error"]["code"], "disk-full");
        for field in ["message", "hint"] {
            assert!(!body["error"][field].as_str().expect(field).is_empty());
        }
    }
}
