//! Request bodies: read within bounds of size, time and memory, and parsed as JSON with errors that point to the place. [`super::rest`]
//! handles the rest of a refused body.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::app::App;
use super::bounds::{BODY_MS_MAX, BODY_SILENCE_MS_MAX, JSON_BODY_BYTES_MAX};
use super::coding::coding_of;
use super::error::{ApiError, own};
use super::receiving::{make_room, too_much_received};
use crate::nearest::{hint_of, in_plain_words};
use crate::net::Room;
use crate::text::{SEND_UTF8, unmarked};

/// A body and its share of the memory for bodies; keep it while the bytes are used.
pub(super) struct Taken {
    pub(super) bytes: Bytes,
    room: Room,
}

impl App {
    /// Reads a body of at most `bytes_max`, also after decompression.
    pub(super) async fn take_body(
        &self,
        headers: &HeaderMap,
        body: Body,
        bytes_max: usize,
    ) -> Result<Taken, ApiError> {
        let mut chunks = body.into_data_stream();
        if promised(headers) > Some(bytes_max as u64) {
            return Err(too_large(bytes_max));
        }
        let reading = self.read_plain(headers, &mut chunks, bytes_max);
        let limit = Duration::from_millis(BODY_MS_MAX);
        timeout(limit, reading)
            .await
            .unwrap_or_else(|_| Err(too_slow()))
    }

    /// Reads a body, and decompresses it if necessary.
    async fn read_plain(
        &self,
        headers: &HeaderMap,
        chunks: &mut BodyDataStream,
        bytes_max: usize,
    ) -> Result<Taken, ApiError> {
        let coding = coding_of(headers)?;
        let mut taken = self.read(chunks, bytes_max).await?;
        if let Some(coding) = coding {
            let Taken { bytes, room } = &mut taken;
            *bytes = self.inflated(coding, bytes, room, bytes_max).await?;
        }
        Ok(taken)
    }

    async fn read(&self, chunks: &mut BodyDataStream, bytes_max: usize) -> Result<Taken, ApiError> {
        let mut room = self.budgets.received.nothing();
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        let silence = Duration::from_millis(BODY_SILENCE_MS_MAX);
        while let Some(chunk) = timeout(silence, chunks.next())
            .await
            .map_err(|_| too_slow())?
        {
            let chunk = chunk.map_err(broken_off)?;
            let total = first.len() + all.len() + chunk.len();
            if total > bytes_max {
                return Err(too_large(bytes_max));
            }
            make_room(&mut room, total).await?;
            // Most bodies are one chunk, which is not copied.
            if total == chunk.len() {
                first = chunk;
                continue;
            }
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&chunk);
        }
        let bytes = if all.is_empty() { first } else { all.freeze() };
        Ok(Taken { bytes, room })
    }

    /// Reserves this much besides the body, for the parsed form. It is available at once or not: two that hold their bodies and wait
    /// for more would wait for each other.
    pub(super) fn make_room_beside(&self, taken: &mut Taken, bytes: usize) -> Result<(), ApiError> {
        match taken.room.grow(taken.bytes.len() + bytes) {
            true => Ok(()),
            false => Err(too_much_received()),
        }
    }

    /// Reads a body as JSON.
    pub(super) async fn take_json<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<T, ApiError> {
        let taken = self.take_body(headers, body, JSON_BODY_BYTES_MAX).await?;
        json(&taken.bytes)
    }

    /// Reads a body as JSON; an empty one means the defaults.
    pub(super) async fn take_json_or_default<T: DeserializeOwned + Default>(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<T, ApiError> {
        let taken = self.take_body(headers, body, JSON_BODY_BYTES_MAX).await?;
        match taken.bytes.trim_ascii() {
            b"" => Ok(T::default()),
            bytes => json(bytes),
        }
    }
}

/// The length according to the head.
pub(super) fn promised(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(CONTENT_LENGTH)?.to_str().ok()?;
    length.parse().ok()
}

fn broken_off(error: axum::Error) -> ApiError {
    ApiError::malformed(format!("the body is incomplete: {error}"), "send it again")
}

/// Parses JSON; errors name line, column and field.
pub(super) fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    let bytes = unmarked(bytes).map_err(other_encoding)?;
    // Every accepted body is an object; a list would be read as its fields in order.
    if let Some(kind) = no_object(bytes) {
        let message = format!("the JSON is invalid: it is {kind}, not an object");
        let hint = "send {…} with named fields; GET /openapi.json describes them";
        return Err(ApiError::malformed(message, hint));
    }
    serde_json::from_slice(bytes).map_err(|error| match field_of::<T>(bytes) {
        Some(field) => not_understood(&format!("{field}: "), &error),
        None => not_understood("", &error),
    })
}

/// Interprets parsed JSON; errors name the field.
pub(super) fn of_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| match error.path().to_string() {
        path if path == "." => not_understood("", error.inner()),
        path => not_understood(&format!("{path}: "), error.inner()),
    })
}

/// Text in another encoding than UTF-8.
pub(super) fn other_encoding(name: &str) -> ApiError {
    ApiError::malformed(format!("the text is {name}, not UTF-8"), SEND_UTF8)
}

fn no_object(bytes: &[u8]) -> Option<&'static str> {
    match bytes.trim_ascii_start().first()? {
        b'[' => Some("a list"),
        b'"' => Some("a string"),
        b'0'..=b'9' | b'-' => Some("a number"),
        _ => None,
    }
}

/// The wrong field. Parses once more while tracking the path, so that well-formed input does not pay for it.
fn field_of<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let error = serde_path_to_error::deserialize::<_, T>(&mut reader).err()?;
    let path = error.path().to_string();
    // The whole body, or it ended before any field.
    (path != "." && path != "?").then_some(path)
}

fn not_understood(place: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let hint = hint_of(&text).unwrap_or_else(|| {
        let hint = match error.classify() {
            serde_json::error::Category::Data => "GET /openapi.json describes the expected body",
            serde_json::error::Category::Eof => "the body ends too early; send all of it",
            _ => "correct the JSON at the position named",
        };
        hint.to_owned()
    });
    let text = in_plain_words(&text);
    ApiError::malformed(format!("the JSON is invalid: {place}{text}"), hint)
}

fn too_large(bytes_max: usize) -> ApiError {
    let message = format!("the body is larger than {bytes_max} bytes");
    ApiError::too_large(
        message,
        "split it into several requests, or make it smaller",
    )
}

fn too_slow() -> ApiError {
    let hint = "send the whole request again without pauses";
    ApiError::own(&own::TOO_SLOW, "the body did not arrive in time", hint)
}
