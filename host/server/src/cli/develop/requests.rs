//! Requests of a sample for a component of the kind `http`: one JSON object per line.

use axum::http::{HeaderName, HeaderValue, Method, header, uri::PathAndQuery};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use millrace_broker::HttpHeaders;
use serde::Deserialize;
use serde_json::{Map, Value};

/// A request of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    pub(super) headers: HttpHeaders,
    pub(super) body: Bytes,
}

/// The same as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestIn {
    #[serde(default = "get")]
    method: String,
    path: String,
    /// Name to value; a name that repeats has a list of values.
    #[serde(default)]
    headers: Map<String, Value>,
    /// A text; anything else is sent as JSON.
    body: Option<Value>,
    body_base64: Option<String>,
}

fn get() -> String {
    "GET".to_owned()
}

/// What is wrong with a line, and what would be right.
type Wrong = (String, String);

impl Request {
    /// Reads a line.
    pub(super) fn of(line: &[u8]) -> Result<Self, Wrong> {
        let read = serde_json::from_slice(line);
        let RequestIn {
            method,
            path,
            headers,
            body,
            body_base64,
        } = read.map_err(|error| {
            let hint = "write one JSON object per line, such as {\"method\": \"POST\", \"path\": \"/names\", \"body\": \"Ada\"}";
            (error.to_string(), hint.to_owned())
        })?;
        if Method::from_bytes(method.as_bytes()).is_err() {
            let what = format!("{method:?} is not a method");
            return Err((what, "write one such as GET or POST".to_owned()));
        }
        if !path.starts_with('/') || PathAndQuery::try_from(path.as_str()).is_err() {
            let what = format!("{path:?} is not the path of a request");
            let hint = "begin it with a slash, and encode other characters than those of a URL";
            return Err((what, hint.to_owned()));
        }
        let body = match (body, body_base64) {
            (Some(_), Some(_)) => {
                let what = "it has both body and body_base64".to_owned();
                return Err((what, "leave one of them out".to_owned()));
            }
            (None, Some(encoded)) => STANDARD.decode(encoded).map_err(|error| {
                let what = format!("body_base64 is not base64: {error}");
                (what, "encode the bytes of the body".to_owned())
            })?,
            (Some(Value::String(text)), None) => text.into_bytes(),
            (Some(value), None) => value.to_string().into_bytes(),
            (None, None) => Vec::new(),
        };
        let mut headers = headers_of(headers)?;
        let length = header::CONTENT_LENGTH.as_str();
        // A client says it as well.
        if !body.is_empty() && !headers.iter().any(|(name, _)| name == length) {
            headers.push((length.to_owned(), body.len().to_string().into()));
        }
        Ok(Self {
            method,
            target: path,
            headers,
            body: body.into(),
        })
    }
}

fn headers_of(given: Map<String, Value>) -> Result<HttpHeaders, Wrong> {
    let mut headers = Vec::new();
    for (name, value) in given {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let valid = value.as_str().and_then(|text| {
                let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                let value = HeaderValue::from_str(text).ok()?;
                let value = Bytes::copy_from_slice(value.as_bytes());
                Some((name.as_str().to_owned(), value))
            });
            headers.push(valid.ok_or_else(|| {
                let what = format!("the header {name:?} cannot be sent with the value {value}");
                (what, "write a text, or a list of texts".to_owned())
            })?);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request_and_a_body_that_is_no_text_is_json() {
        let plain = Request::of(br#"{"path": "/a?b=c"}"#).expect("a request");
        assert_eq!(
            (plain.method.as_str(), plain.target.as_str()),
            ("GET", "/a?b=c")
        );
        assert!(plain.headers.is_empty() && plain.body.is_empty());
        let line = br#"{"method": "POST", "path": "/a", "headers": {"X-A": ["1", "2"]}, "body": {"b": 1}}"#;
        let full = Request::of(line).expect("a request");
        let headers = [("x-a", "1"), ("x-a", "2"), ("content-length", "7")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.into()));
        assert_eq!(
            (full.headers, full.body),
            (headers.to_vec(), "{\"b\":1}".into())
        );
    }

    #[test]
    fn a_line_that_no_client_can_send_is_refused() {
        for line in [
            "{}",
            r#"{"path": "names"}"#,
            r#"{"path": "/a b"}"#,
            r#"{"path": "/", "method": "GE T"}"#,
            r#"{"path": "/", "headers": {"x y": "1"}}"#,
            r#"{"path": "/", "headers": {"x": 1}}"#,
            r#"{"path": "/", "body": "a", "body_base64": "YQ=="}"#,
            r#"{"path": "/", "body_base64": "?"}"#,
            r#"{"path": "/", "boddy": "a"}"#,
        ] {
            assert!(Request::of(line.as_bytes()).is_err(), "{line}");
        }
    }
}
