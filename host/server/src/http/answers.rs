//! Answers with messages: one bound for all of them in memory, however many readers there are and
//! however slowly they read.
//!
//! Room is taken before messages are read, and goes back when the last byte of the answer is sent or its connection is gone.

use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use millrace_model::{Code, Header, Message};

use super::app::App;
use super::bounds::{ANSWER_ROOM_WAIT_MS_MAX, FETCH_BYTES_MAX, FETCHES_LEAST};
use super::error::ApiError;
use crate::net::Room;

/// The largest size of a message byte: itself, and `\u0000` in JSON.
pub(super) const BYTES_PER_BYTE: usize = 7;
/// Size of a message besides its bytes: field names, numbers, brackets.
const BYTES_PER_MESSAGE: usize = 256;
/// Size of a header besides its bytes, in the object and in the list.
const BYTES_PER_HEADER: usize = 80;
/// The largest size of a header byte, once more in the list.
const BYTES_PER_LISTED_BYTE: usize = 6;

/// The largest size of a message and its JSON.
pub(super) fn worst(message: &Message) -> usize {
    let length = |header: &Header| header.name.len() + header.value.as_ref().map_or(0, Bytes::len);
    let listed: usize = message.headers.iter().map(length).sum();
    let beside = BYTES_PER_MESSAGE + BYTES_PER_HEADER * message.headers.len();
    beside + BYTES_PER_BYTE * message.byte_count() + BYTES_PER_LISTED_BYTE * listed
}

impl App {
    /// Maximum bytes of one fetch.
    pub(super) fn fetch_bytes_max(&self) -> usize {
        FETCH_BYTES_MAX.min(self.budgets.sent.bytes_max() / FETCHES_LEAST)
    }

    /// Waits a little for room for `bytes`, then reports that the host is busy.
    pub(super) async fn answer_room(&self, bytes: usize) -> Result<Room, ApiError> {
        let wait = Duration::from_millis(ANSWER_ROOM_WAIT_MS_MAX);
        self.budgets.sent.take(bytes, wait).await.ok_or_else(busy)
    }
}

fn busy() -> ApiError {
    let message = "the memory for answers is in use";
    let hint = "try again; ask for fewer bytes at once, and read answers as they arrive";
    ApiError::new(Code::Occupied, message, hint)
}

impl Room {
    /// The answer, which keeps the room that it needs for as long as any of it exists.
    pub(super) fn answer(self, content_type: &'static str, bytes: Vec<u8>) -> Response {
        let content_type = HeaderValue::from_static(content_type);
        ([(CONTENT_TYPE, content_type)], self.keep(bytes)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::Timestamp;

    use super::super::messages::MessageOut;
    use super::*;

    #[test]
    fn no_json_is_larger_than_the_worst() {
        let zeros = Bytes::from(vec![0; 1_000]);
        let not_text = Bytes::from(vec![0xff; 1_000]);
        let header = |name: &Bytes, value: &Option<Bytes>| Header {
            name: name.clone(),
            value: value.clone(),
        };
        for bytes in [None, Some(Bytes::new()), Some(zeros), Some(not_text)] {
            let name = bytes.clone().unwrap_or_default();
            let mut headers = vec![header(&name, &bytes); 100];
            // Of two names, so that they are listed as well.
            headers.push(header(&Bytes::from_static(b"a"), &bytes));
            let message = Message {
                key: bytes.clone(),
                value: bytes.clone(),
                headers,
                timestamp: Timestamp(u64::MAX),
            };
            let out = MessageOut {
                place: None,
                message: &message,
            };
            let json = serde_json::to_vec(&out).expect("JSON");
            assert!(json.len() + message.byte_count() < worst(&message));
        }
    }
}
