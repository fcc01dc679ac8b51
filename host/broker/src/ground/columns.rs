//! Builds column batches one message at a time.

use millrace_model::columns::NONE;
use millrace_model::{ColumnBatch, Message};

/// Adds a message from borrowed parts.
pub(crate) fn push<'a>(
    columns: &mut ColumnBatch,
    offset: u64,
    timestamp: u64,
    attempt: u32,
    parts: (Option<&[u8]>, Option<&[u8]>),
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
) {
    put(&mut columns.data, &mut columns.keys, parts.0);
    put(&mut columns.data, &mut columns.values, parts.1);
    for (name, value) in headers {
        put(&mut columns.data, &mut columns.headers, Some(name));
        put(&mut columns.data, &mut columns.headers, value);
    }
    columns.header_ends.push((columns.headers.len() / 4) as u32);
    columns.offsets.push(offset);
    columns.timestamps.push(timestamp);
    columns.attempts.push(attempt);
}

/// Appends the bytes and their span; `None` gets the span of a missing value.
pub(crate) fn put(data: &mut Vec<u8>, spans: &mut Vec<u32>, bytes: Option<&[u8]>) {
    match bytes {
        None => spans.extend([0, NONE]),
        Some(bytes) => {
            spans.extend([data.len() as u32, bytes.len() as u32]);
            data.extend_from_slice(bytes);
        }
    }
}

/// Adds a message that has no offset yet.
pub(crate) fn push_message(columns: &mut ColumnBatch, message: &Message) {
    let headers = message
        .headers
        .iter()
        .map(|header| (&header.name[..], header.value.as_deref()));
    let parts = (message.key.as_deref(), message.value.as_deref());
    push(columns, 0, message.timestamp.0, 1, parts, headers);
}

/// Some messages of a batch as a batch of their own.
pub(crate) fn select(batch: &ColumnBatch, messages: impl Iterator<Item = usize>) -> ColumnBatch {
    let mut columns = ColumnBatch {
        topic: batch.topic.clone(),
        partition: batch.partition,
        ..ColumnBatch::default()
    };
    for message in messages {
        push(
            &mut columns,
            batch.offsets[message],
            batch.timestamps[message],
            batch.attempts[message],
            (batch.key(message), batch.value(message)),
            batch.headers(message),
        );
    }
    columns
}
