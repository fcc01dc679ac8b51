//! The one shape of all errors: a code for programs, a message for people, and what to do now. What an error means stands beside it
//! ([`Advised`]); here its kind becomes a status, and a hint says how things are spelt over HTTP.

pub(crate) mod own;

use axum::Json;
use axum::http::header::{ACCEPT_ENCODING, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use millrace_model::{Advice, Advised, Code, Kind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::own::Own;
use super::auditing::RefusedWith;

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
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Serialize, Deserialize, ToSchema)]
struct ErrorDetail {
    /// Stable, for programs. docs/errors.md lists all codes.
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

impl From<ErrorBody> for ApiError {
    /// What another host answered. A code that this one does not know becomes an internal error with the same text.
    fn from(body: ErrorBody) -> Self {
        let ErrorDetail {
            code,
            message,
            hint,
            ..
        } = body.error;
        let known = Code::ALL.iter().find(|known| known.as_str() == code);
        Self::new(known.copied().unwrap_or(Code::Internal), message, hint)
    }
}

impl ApiError {
    /// With the time to come back that belongs to the code.
    pub(crate) fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::advised(code.hint(hint.into()), message.into())
    }

    /// With the hint that belongs to the code.
    pub(crate) fn of(code: Code, message: impl Into<String>) -> Self {
        Self::advised(over_http(code.advice()), message.into())
    }

    /// About the request as HTTP sees it.
    pub(crate) fn own(own: &Own, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            status: own.status,
            code: own.text,
            message: message.into(),
            hint: hint.into(),
            retry_after_s: None,
            next: None,
            partition: None,
            accepted_encodings: None,
        }
    }

    fn advised(advice: Advice, message: String) -> Self {
        if advice.code == Code::Internal {
            tracing::error!(%message, "a request failed with an internal error");
        }
        Self {
            status: status_of(advice.kind()),
            code: advice.code.as_str(),
            message,
            hint: advice.hint.into_owned(),
            retry_after_s: advice.retry_after_s,
            next: advice.next.map(|next| next.0),
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

    /// Adds when to try again.
    pub(crate) fn after_s(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
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
        Self::new(Code::Malformed, message, hint)
    }

    pub(crate) fn too_large(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Code::TooLarge, message, hint)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::of(Code::Internal, message)
    }

    /// Replaces the status, where HTTP has a better one.
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn is(&self, code: Code) -> bool {
        self.code == code.as_str()
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
        response.extensions_mut().insert(RefusedWith(self.code));
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

impl<E: Advised> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self::advised(over_http(error.advice()), error.to_string())
    }
}

/// The status of every error of a kind.
fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Malformed => StatusCode::BAD_REQUEST,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::Unknown => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Busy => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Damaged | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The same in the words of this door, where it has its own: parameters, headers, request ids.
fn over_http(advice: Advice) -> Advice {
    let hint = match (advice.code, advice.next) {
        (Code::OffsetNotKept, _) => "continue with from=earliest",
        (Code::OffsetPastEnd, _) => {
            "continue with from=latest, or wait; write a time as from_time=2026-11-21T10:00:00Z"
        }
        (Code::Damaged, Some(next)) => {
            return advice.hint(format!(
                "continue with from={next}; the rest of the partition is sound. GET /v1/damage lists all damage"
            ));
        }
        (Code::WhichTopic, _) => "name one of them in topic",
        (Code::IdempotencyKeyReused, _) => {
            "use a new Idempotency-Key for this call; the first call stands"
        }
        (Code::InDoubt, _) => {
            "check whether it took effect; a call with an Idempotency-Key can be repeated with the same key"
        }
        (Code::Internal, _) => "see the host's log; it contains the x-request-id of this answer",
        _ => return advice,
    };
    advice.hint(hint)
}

pub(crate) async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let message = format!("there is no {method} {}", uri.path());
    let hint = "GET /openapi.json lists all routes";
    ApiError::own(&own::UNKNOWN_ROUTE, message, hint)
}

pub(crate) async fn unknown_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    let hint = "GET /openapi.json lists the methods it accepts";
    ApiError::own(&own::UNKNOWN_METHOD, message, hint)
}

#[cfg(test)]
mod tests {
    use millrace_engine::{CommitError, DamageKind, ReadError};
    use millrace_model::{Offset, PartitionId, TopicId, TopicPartition};

    use super::*;

    #[test]
    fn what_is_spelt_for_http_names_its_parameters() {
        let (requested, start) = (Offset(3), Offset(7));
        let gone = ApiError::from(ReadError::BelowStart { requested, start });
        assert_eq!((gone.status, gone.next), (StatusCode::NOT_FOUND, Some(7)));
        assert_eq!(gone.hint, "continue with from=earliest");
        let damaged = ApiError::from(ReadError::Damaged {
            partition: TopicPartition {
                topic: TopicId(1),
                partition: PartitionId(0),
            },
            from: requested,
            to: start,
            kind: DamageKind::Changed,
        });
        assert_eq!(damaged.code, "damaged");
        assert!(damaged.hint.starts_with("continue with from=7;"));
    }

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
