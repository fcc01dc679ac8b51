//! `Content-Type` of a produce request (and `Accept` of a fetch): whether its body is JSON, one message per line, or a single message.
//! Nothing is guessed: a body of another type, or of none, could be any of the three, and a wrong guess would store something
//! unintended.

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};

use super::error::{ApiError, own};

/// The types for one JSON object.
const JSON: [&str; 1] = ["application/json"];
/// The types for one JSON object per line. None is registered, so senders use many.
const LINES: [&str; 13] = [
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonl",
    "application/jsonlines",
    "application/x-jsonlines",
    "application/json-lines",
    "application/x-json-lines",
    "application/json-l",
    "application/x-ldjson",
    "text/x-ndjson",
    "text/ndjson",
    "text/jsonl",
];
/// The types for a body that is one message.
const RAW: [&str; 2] = ["application/octet-stream", "text/plain"];
/// The accepted charsets of text.
const CHARSETS: [&str; 3] = ["utf-8", "utf8", "us-ascii"];
/// Maximum length of a type repeated in an error.
const SHOWN_CHARS_MAX: usize = 80;

/// What to send instead.
const ACCEPTED: &str = "use application/json for one message or {\"messages\": […]}, application/x-ndjson (or application/jsonl) for one message per \
     line, application/octet-stream or text/plain for one message whose value is the body";

/// How to read a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message, or several under `messages`.
    Json,
    /// One message per line.
    Lines,
    /// One message whose value is the body.
    Raw,
}

impl Kind {
    /// According to the headers.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut given = headers.get_all(CONTENT_TYPE).iter();
        let Some(value) = given.next() else {
            return Err(unsupported("the request has no Content-Type".to_owned()));
        };
        if given.next().is_some() {
            let message = "the request has more than one Content-Type";
            return Err(unsupported(message.to_owned()));
        }
        let shown: String = String::from_utf8_lossy(value.as_bytes())
            .chars()
            .take(SHOWN_CHARS_MAX)
            .collect();
        let not_taken = |what: &str| unsupported(format!("Content-Type {shown:?} {what}"));
        let text = value.to_str().map_err(|_| not_taken("is invalid"))?;
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default();
        let is_of = |names: &[&str]| names.iter().any(|name| essence.eq_ignore_ascii_case(name));
        let kind = match () {
            () if is_of(&JSON) => Self::Json,
            () if is_of(&LINES) => Self::Lines,
            () if is_of(&RAW) => Self::Raw,
            () => return Err(not_taken("is not supported here")),
        };
        let is_text = kind != Self::Raw || essence.eq_ignore_ascii_case("text/plain");
        match is_text && parts.any(is_another_charset) {
            true => Err(not_taken("is not UTF-8, the only supported encoding")),
            false => Ok(kind),
        }
    }
}

/// Whether the answer should have one message per line.
pub(super) fn wants_lines(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter();
    let mut ranges = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    ranges.any(|range| {
        let essence = range.split(';').next().unwrap_or_default().trim();
        LINES.iter().any(|name| essence.eq_ignore_ascii_case(name))
    })
}

fn is_another_charset(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let value = value.trim().trim_matches('"');
    let known = || CHARSETS.iter().any(|name| value.eq_ignore_ascii_case(name));
    name.trim().eq_ignore_ascii_case("charset") && !known()
}

fn unsupported(message: String) -> ApiError {
    ApiError::own(&own::UNSUPPORTED_TYPE, message, ACCEPTED)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn kind(value: &'static str) -> Option<Kind> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
        Kind::of(&headers).ok()
    }

    #[test]
    fn a_type_is_known_under_every_name_in_any_case_and_with_parameters() {
        for (names, wanted) in [
            (&JSON[..], Kind::Json),
            (&LINES[..], Kind::Lines),
            (&RAW[..], Kind::Raw),
        ] {
            for name in names {
                assert_eq!(kind(name), Some(wanted), "{name}");
            }
        }
        assert_eq!(
            kind("Application/JSON ; Charset=\"UTF-8\""),
            Some(Kind::Json)
        );
        assert_eq!(kind("APPLICATION/JSONL;charset=utf-8"), Some(Kind::Lines));
        assert_eq!(kind("application/json; profile=x"), Some(Kind::Json));
        assert_eq!(kind("application/octet-stream; charset=x"), Some(Kind::Raw));
    }

    #[test]
    fn lines_are_asked_for_under_every_name() {
        let asked = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(value));
            wants_lines(&headers)
        };
        for lines in ["application/x-ndjson", "text/html, Application/JSONL;q=0.5"] {
            assert!(asked(lines), "{lines}");
        }
        for json in ["*/*", "application/json", "application/x-ndjsonx"] {
            assert!(!asked(json), "{json}");
        }
    }

    #[test]
    fn every_other_type_is_refused_with_those_that_are_taken() {
        for other in [
            "",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json-seq",
            "application/vnd.api+json",
            "text/json",
            "image/png",
            "*/*",
            "application/json, text/plain",
            "application/json; charset=utf-16",
            "application/x-ndjson; charset=iso-8859-1",
            "text/plain; charset=windows-1252",
        ] {
            assert_eq!(kind(other), None, "{other:?}");
        }
        let mut headers = HeaderMap::new();
        assert!(Kind::of(&headers).is_err(), "nothing is not the default");
        headers.append(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.append(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert!(Kind::of(&headers).is_err(), "two are none");
    }
}
