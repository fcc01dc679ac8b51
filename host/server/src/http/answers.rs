//! Answers with messages: held in memory within one common bound, however many readers there are and however slowly they read.
//!
//! Room is reserved before messages are read, and returned when the last byte of the answer is sent or its connection is gone. It
//! belongs to the bytes themselves, so data in a connection's buffer counts too.

use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use millrace_model::{Header, Message};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::App;
use super::bounds::{ANSWER_ROOM_WAIT_MS_MAX, FETCH_BYTES_MAX, FETCHES_LEAST};
use super::error::ApiError;

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

/// An answer's share of the memory of all answers.
pub(super) struct Room {
    permit: OwnedSemaphorePermit,
    /// Memory of all answers together.
    kib_max: usize,
}

impl App {
    /// Maximum bytes of one fetch.
    pub(super) fn fetch_bytes_max(&self) -> usize {
        FETCH_BYTES_MAX.min((self.answers_kib_max << 10) / FETCHES_LEAST)
    }

    /// Waits a little for room for `bytes`, then reports that the host is busy.
    pub(super) async fn answer_room(&self, bytes: usize) -> Result<Room, ApiError> {
        let wait = Duration::from_millis(ANSWER_ROOM_WAIT_MS_MAX);
        let kib_max = self.answers_kib_max;
        let permits = kib(bytes, kib_max);
        let permits = self.answers_kib.clone().acquire_many_owned(permits);
        match timeout(wait, permits).await {
            Ok(Ok(permit)) => Ok(Room { permit, kib_max }),
            _ => Err(busy()),
        }
    }
}

fn busy() -> ApiError {
    let message = "the memory for answers is in use";
    let hint = "try again; ask for fewer bytes at once, and read answers as they arrive";
    ApiError::unavailable("busy", message, hint, 1)
}

/// A single answer never needs more than all there is.
fn kib(bytes: usize, kib_max: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10).min(kib_max)).unwrap_or(u32::MAX)
}

impl Room {
    /// Reserves room for `bytes` if available at once. A holder of room does not wait for more: others might do the same.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let wanted = kib(bytes, self.kib_max) as usize;
        let missing = wanted.saturating_sub(self.permit.num_permits());
        if missing == 0 {
            return true;
        }
        let semaphore = self.permit.semaphore().clone();
        match semaphore.try_acquire_many_owned(u32::try_from(missing).unwrap_or(u32::MAX)) {
            Ok(more) => {
                self.permit.merge(more);
                true
            }
            Err(_) => false,
        }
    }

    /// The bytes that it is for.
    pub(super) fn byte_count(&self) -> usize {
        self.permit.num_permits() << 10
    }

    /// The answer, which keeps the room that it needs for as long as any of it exists.
    pub(super) fn answer(self, content_type: &'static str, bytes: Vec<u8>) -> Response {
        let content_type = HeaderValue::from_static(content_type);
        ([(CONTENT_TYPE, content_type)], self.keep(bytes)).into_response()
    }

    fn keep(mut self, bytes: Vec<u8>) -> Bytes {
        let needed = kib(bytes.len(), self.kib_max) as usize;
        let spare = self.permit.num_permits().saturating_sub(needed);
        drop(self.permit.split(spare));
        Bytes::from_owner(Kept { bytes, _room: self })
    }
}

struct Kept {
    bytes: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millrace_model::Timestamp;
    use tokio::sync::Semaphore;

    use super::super::messages::MessageOut;
    use super::*;

    fn room(all: &Arc<Semaphore>, bytes: usize) -> Room {
        let kib_max = all.available_permits();
        let permit = all.clone().try_acquire_many_owned(kib(bytes, kib_max));
        Room {
            permit: permit.expect("room"),
            kib_max,
        }
    }

    #[test]
    fn an_answer_keeps_what_it_needs_until_its_last_byte_is_gone() {
        let all = Arc::new(Semaphore::new(100));
        let mut held = room(&all, 10 << 10);
        assert!(held.grow(90 << 10));
        let other = room(&all, 5 << 10);
        assert!(!held.grow(96 << 10));
        drop(other);
        assert_eq!(all.available_permits(), 10);
        let mut bytes = held.keep(vec![1; 3 << 10]);
        assert_eq!(all.available_permits(), 97);
        let rest = bytes.split_off(1);
        drop(bytes);
        assert_eq!(all.available_permits(), 97);
        drop(rest);
        assert_eq!(all.available_permits(), 100);
    }

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
