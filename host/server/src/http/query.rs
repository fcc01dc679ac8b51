//! The URL, parsed: path segments and query fields; errors have our shape.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::nearest::{hint_of, in_plain_words};

/// The path's segments.
pub(super) struct InPath<T>(pub(super) T);

/// The query's fields.
pub(super) struct InQuery<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found = Path::<T>::from_request_parts(parts, state).await;
        found.map(|Path(value)| Self(value)).map_err(|rejection| {
            let hint =
                "names use letters, digits, '.', '_' and '-'; partitions and offsets are numbers";
            ApiError::malformed(rejection.body_text(), hint)
        })
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for InQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        if !is_utf8_unescaped(parts.uri.query().unwrap_or_default()) {
            let hint = "escape UTF-8 text; send other bytes in JSON as base64, such as key_base64";
            return Err(ApiError::malformed("the query is not UTF-8", hint));
        }
        let found = Query::<T>::from_request_parts(parts, state).await;
        found.map(|Query(value)| Self(value)).map_err(|rejection| {
            let text = rejection.body_text();
            let hint = hint_of(&text);
            let hint = hint.unwrap_or_else(|| "GET /openapi.json lists the parameters".to_owned());
            ApiError::malformed(in_plain_words(&text), hint)
        })
    }
}

/// Whether the query decodes to text: the framework would insert replacement characters otherwise.
fn is_utf8_unescaped(query: &str) -> bool {
    let mut rest = query.as_bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&first, after)) = rest.split_first() {
        let digits = after
            .get(..2)
            .and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escaped.filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    str::from_utf8(&bytes).is_ok()
}
