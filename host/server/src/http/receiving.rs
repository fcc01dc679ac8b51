//! Room for incoming data: waits a little for it, and then reports that the host is busy.

use std::time::Duration;

use millrace_model::Code;

use super::bounds::BODY_ROOM_WAIT_MS_MAX;
use super::error::ApiError;
use crate::net::Room;

/// Grows the room to `bytes` in total.
pub(super) async fn make_room(room: &mut Room, bytes: usize) -> Result<(), ApiError> {
    let wait = Duration::from_millis(BODY_ROOM_WAIT_MS_MAX);
    match room.grow_within(bytes, wait).await {
        true => Ok(()),
        false => Err(too_much_received()),
    }
}

pub(super) fn too_much_received() -> ApiError {
    let message = "the memory for request bodies is in use";
    let hint = "send more slowly, or try again in a moment; nothing of this request was stored";
    ApiError::new(Code::Occupied, message, hint)
}
