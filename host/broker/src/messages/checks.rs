//! What a topic accepts: every check of a message or a record before anything is stored.

use millrace_model::bounds::{
    DELAY_MS_MAX, DELAYED_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGE_HEADERS_MAX,
    PRODUCE_CALL_MESSAGES_MAX, TIMESTAMP_AHEAD_MS_MAX,
};
use millrace_model::unit::check_ms;
use millrace_model::{Timestamp, Topic};

use crate::catalogue::unknown::known_partition;
use crate::ground::headers;
use crate::messages::call::NewMessage;
use crate::messages::delays::stored::DueAt;
use crate::messages::produce_error::ProduceError;

/// Checks everything before anything is stored; returns the bytes of all messages.
pub(super) fn check(
    topic: &Topic,
    messages: &[NewMessage],
    now: Timestamp,
    bytes_max: usize,
) -> Result<usize, ProduceError> {
    check_count(topic, messages.len())?;
    let mut bytes = 0;
    for (index, new) in messages.iter().enumerate() {
        let message_bytes = check_message(topic, index, new)?;
        check_times(index, new, now)?;
        check_delay(index, new, message_bytes, now)?;
        bytes += message_bytes;
    }
    check_bytes(bytes, bytes_max)?;
    Ok(bytes)
}

/// Whether producers may send to the topic, and this many messages in one call.
pub(super) fn check_count(topic: &Topic, messages: usize) -> Result<(), ProduceError> {
    if let Some(owner) = &topic.spec.owner {
        return Err(ProduceError::Owned {
            topic: topic.spec.name.clone(),
            owner: owner.clone(),
        });
    }
    match messages {
        0 => Err(ProduceError::NothingToSend),
        1..=PRODUCE_CALL_MESSAGES_MAX => Ok(()),
        _ => Err(ProduceError::TooMany {
            messages,
            max: PRODUCE_CALL_MESSAGES_MAX,
        }),
    }
}

/// Whether one call may carry this many bytes.
pub(super) fn check_bytes(bytes: usize, max: usize) -> Result<(), ProduceError> {
    match bytes <= max {
        true => Ok(()),
        false => Err(ProduceError::CallTooLarge { bytes, max }),
    }
}

fn check_message(topic: &Topic, index: usize, new: &NewMessage) -> Result<usize, ProduceError> {
    let message = &new.message;
    let names = message.headers.iter().map(|header| &header.name[..]);
    let bytes = message.byte_count();
    let bytes = check_content(topic, index, message.key.is_some(), bytes, names)?;
    match new.partition {
        None => Ok(bytes),
        Some(partition) => match known_partition(topic, partition) {
            Ok(_) => Ok(bytes),
            Err(unknown) => Err(ProduceError::UnknownPartition { index, unknown }),
        },
    }
}

/// Whether the topic takes a message with a key or without, of this many bytes, and with headers of these names. Returns its bytes with
/// the framing of its headers.
pub(super) fn check_content<'a>(
    topic: &Topic,
    index: usize,
    has_key: bool,
    bytes: usize,
    mut header_names: impl ExactSizeIterator<Item = &'a [u8]>,
) -> Result<usize, ProduceError> {
    if topic.spec.settings.compact && !has_key {
        let topic = topic.spec.name.clone();
        return Err(ProduceError::KeyMissing { index, topic });
    }
    // The framing of each header counts too, so that a batch of this many bytes always fits.
    let bytes = bytes + header_names.len() * 10;
    if bytes > MESSAGE_BYTES_MAX {
        let max = MESSAGE_BYTES_MAX;
        return Err(ProduceError::TooLarge { index, bytes, max });
    }
    if header_names.len() > MESSAGE_HEADERS_MAX {
        return Err(ProduceError::TooManyHeaders {
            index,
            headers: header_names.len(),
            max: MESSAGE_HEADERS_MAX,
        });
    }
    match header_names.find(|name| headers::is_reserved(name)) {
        Some(name) => {
            let name = String::from_utf8_lossy(name).into_owned();
            Err(ProduceError::ReservedHeader { index, name })
        }
        None => Ok(bytes),
    }
}

/// Whether its times are in milliseconds.
fn check_times(index: usize, new: &NewMessage, now: Timestamp) -> Result<(), ProduceError> {
    let due = new
        .deliver_at
        .map_or_else(Timestamp::default, |due| due.time);
    let field = "deliver_at";
    let checked = check_ms(due.0, now);
    checked.map_err(|unit| ProduceError::OtherUnit { index, field, unit })?;
    // A message's own timestamp may equal its time of delivery.
    check_timestamp(index, new.message.timestamp, now, now.max(due))
}

/// Whether a message's timestamp is in milliseconds, and not long after `latest`.
pub(super) fn check_timestamp(
    index: usize,
    timestamp: Timestamp,
    now: Timestamp,
    latest: Timestamp,
) -> Result<(), ProduceError> {
    let timestamp = check_ms(timestamp.0, now).map_err(|unit| ProduceError::OtherUnit {
        index,
        field: "timestamp",
        unit,
    })?;
    let max_ms = TIMESTAMP_AHEAD_MS_MAX;
    match timestamp <= latest.0.saturating_add(max_ms) {
        true => Ok(()),
        false => Err(ProduceError::Ahead {
            index,
            timestamp,
            max_ms,
        }),
    }
}

fn check_delay(
    index: usize,
    new: &NewMessage,
    bytes: usize,
    now: Timestamp,
) -> Result<(), ProduceError> {
    let Some(DueAt { time: at, .. }) = new.deliver_at else {
        return Ok(());
    };
    if bytes > DELAYED_MESSAGE_BYTES_MAX {
        let max = DELAYED_MESSAGE_BYTES_MAX;
        return Err(ProduceError::DelayedTooLarge { index, bytes, max });
    }
    match at.0 <= now.0.saturating_add(DELAY_MS_MAX) {
        true => Ok(()),
        false => Err(ProduceError::TooFar {
            index,
            deliver_at: at.0,
            max_ms: DELAY_MS_MAX,
        }),
    }
}
