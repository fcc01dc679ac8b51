//! The codes that only this door has: about requests as HTTP sees them, with statuses that no [`Kind`] has. And all codes that it
//! answers with, for `docs/errors.md`.

use axum::http::StatusCode;
use millrace_model::{Code, Kind};

use super::status_of;

/// A code of this door.
#[derive(Debug)]
pub(crate) struct Own {
    pub(super) text: &'static str,
    pub(super) status: StatusCode,
    /// The statuses of requests that are refused like this.
    statuses: &'static str,
    meaning: &'static str,
    remedy: &'static str,
}

macro_rules! own_codes {
    ($($name:ident $text:literal $status:ident $statuses:literal $meaning:literal $remedy:literal;)*) => {
        $(
            #[doc = $meaning]
            pub(crate) const $name: Own = Own {
                text: $text,
                status: StatusCode::$status,
                statuses: $statuses,
                meaning: $meaning,
                remedy: $remedy,
            };
        )*

        const OWN: &[Own] = &[$($name),*];
    };
}

own_codes! {
    BAD_IDEMPOTENCY_KEY "bad-idempotency-key" BAD_REQUEST "400"
        "The header Idempotency-Key is invalid."
        "send one key of visible ASCII characters, such as a UUID, preferably in quotes";
    FOREIGN_CALLER "foreign-caller" FORBIDDEN "403"
        "The request comes from another website, or names another host."
        "call the host by the address that it listens on, from outside a browser; add further names of it with --allowed-host";
    UNKNOWN_ROUTE "unknown-route" NOT_FOUND "404"
        "There is nothing at this path."
        "GET /openapi.json lists all routes";
    UNKNOWN_METHOD "unknown-method" METHOD_NOT_ALLOWED "405"
        "The path does not take this method."
        "GET /openapi.json lists the methods it accepts";
    TOO_SLOW "too-slow" REQUEST_TIMEOUT "408"
        "The request did not arrive in time."
        "send the whole request again without pauses";
    HUNG_UP "hung-up" REQUEST_TIMEOUT "408"
        "The caller closed its side of the connection before the answer."
        "keep the connection open until the answer comes";
    UNSUPPORTED_TYPE "unsupported-type" UNSUPPORTED_MEDIA_TYPE "415"
        "The host does not read bodies of this type."
        "send one of the types that the error names";
    UNSUPPORTED_ENCODING "unsupported-encoding" UNSUPPORTED_MEDIA_TYPE "415"
        "The host does not read bodies in this coding."
        "send the body uncompressed, or in one of the codings that the error names";
    HEAD_TOO_LARGE "head-too-large" REQUEST_HEADER_FIELDS_TOO_LARGE "431, 414"
        "The headers, or the path with its query, are too long."
        "send fewer or shorter headers, or ask for less at once";
    UNKNOWN_CODING "unknown-coding" NOT_IMPLEMENTED "501"
        "The host does not read bodies in this transfer coding."
        "send the body with a Content-Length, or chunked";
    ROUTE_FAILED "route-failed" BAD_GATEWAY "502"
        "The component that answers this path failed, or its answer is not valid."
        "GET /v1/routes/{path} or `millrace route show` shows what it logged";
    ROUTE_LATE "route-late" GATEWAY_TIMEOUT "504"
        "The component that answers this path took too long."
        "try again later, or raise limits.call_ms_max of the route";
    REFUSED "refused" BAD_REQUEST "any"
        "The request is not valid HTTP here; the status says why."
        "GET /openapi.json describes what is accepted";
}

/// A code that answers over HTTP may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    /// The code.
    pub code: &'static str,
    /// Its kind; `None` if only HTTP has it.
    pub kind: Option<Kind>,
    /// The status of such an answer.
    pub status: String,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// All codes: first those of every door, by kind, then those of HTTP alone.
#[must_use]
pub fn error_codes() -> Vec<ErrorCode> {
    let common = Code::ALL.iter().map(|code| ErrorCode {
        code: code.as_str(),
        kind: Some(code.kind()),
        status: status_of(code.kind()).as_str().to_owned(),
        meaning: code.meaning(),
        remedy: code.remedy(),
    });
    let own = OWN.iter().map(|own| ErrorCode {
        code: own.text,
        kind: None,
        status: own.statuses.to_owned(),
        meaning: own.meaning,
        remedy: own.remedy,
    });
    common.chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_of_this_door_is_one_of_all_doors_or_another_one() {
        for (at, own) in OWN.iter().enumerate() {
            let is_common = Code::ALL.iter().any(|code| code.as_str() == own.text);
            assert!(!is_common, "{}", own.text);
            assert!(OWN[..at].iter().all(|other| other.text != own.text));
            let is_said = own.statuses == "any" || own.statuses.starts_with(own.status.as_str());
            assert!(is_said, "{}", own.text);
        }
    }
}
