//! Dead letters over HTTP: listed, shown, counted; [`work`] has the actions on them.

mod find;
pub(super) mod work;

use axum::Json;
use axum::response::Response;
use millrace_broker::{
    CallUse, DeadLetter, DeadLetterGroups, DeadLetterPage, DeadLetterQuery, MessagePlace,
};
use millrace_model::{Offset, PartitionId, ProcessorName, TopicName};
use serde::Serialize;
use utoipa::ToSchema;

use super::answers::worst;
use super::bounds::{DEAD_LETTER_ROOM_BYTES, DEAD_LETTERS_MAX, DEAD_LETTERS_ROOM_BYTES};
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::messages::{MessageOut, MessageSchema};
use super::query::{InPath, InQuery};
use find::Find;

/// Default number of dead letters in a list.
const LISTED_DEFAULT: usize = 100;

#[derive(ToSchema)]
#[allow(dead_code, reason = "describes what written writes by hand")]
pub(super) struct DeadLettersBody {
    dead_letters: Vec<DeadLetterSchema>,
    /// Where to continue, as `from`; null at the end. There may be more even if none was found so far.
    next: Option<String>,
}

/// A dead letter with its evidence.
#[derive(ToSchema)]
#[schema(as = DeadLetter)]
#[allow(
    dead_code,
    reason = "describes what WithMessage writes: the evidence and the message, as one object"
)]
struct DeadLetterSchema {
    topic: String,
    partition: u32,
    offset: u64,
    origin_topic: String,
    origin_partition: u32,
    origin_offset: u64,
    revision: u32,
    module: String,
    attempts: u32,
    cause: String,
    class: String,
    reason: String,
    first_failed_at: u64,
    died_at: u64,
    attempt_log: serde_json::Value,
    backtrace: Option<String>,
    /// What the last call used.
    call: Option<CallUse>,
    /// How often the message had been redriven before it failed this time.
    redrives: u32,
    redriven: bool,
    message: MessageSchema,
}

/// A dead letter's evidence and its message.
#[derive(Serialize)]
struct WithMessage<'a> {
    #[serde(flatten)]
    evidence: &'a DeadLetter,
    message: MessageOut<'a>,
}

/// The dead letters of a processor, oldest first within each partition; by default those that were not redriven.
#[utoipa::path(get, path = "/v1/processors/{name}/dead-letters", tag = "dead letters",
    params(("name" = String, Path,), Find),
    responses(
        (status = 200, body = DeadLettersBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody),
    )
)]
pub(super) async fn list(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(find): InQuery<Find>,
) -> Result<Response, ApiError> {
    let letters_max = find.max.unwrap_or(LISTED_DEFAULT);
    let (filter, from) = find.understood(app.clock.wall())?;
    let query = DeadLetterQuery {
        filter,
        from,
        letters_max: letters_max.clamp(1, DEAD_LETTERS_MAX),
    };
    let room = app.answer_room(DEAD_LETTERS_ROOM_BYTES).await?;
    let page = app
        .session
        .dead_letters()
        .dead_letters(&name, query)
        .await?;
    let written = written(page, room.byte_count())?;
    Ok(room.answer("application/json", written))
}

/// As many as there is room for, but at least one; each leaves memory once it is written.
fn written(page: DeadLetterPage, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    let DeadLetterPage { letters, mut next } = page;
    let size = |letter: &DeadLetter| letter.message.byte_count();
    let mut unwritten: usize = letters.iter().map(size).sum();
    let mut out = br#"{"dead_letters":["#.to_vec();
    for (at, letter) in letters.into_iter().enumerate() {
        if at > 0 {
            if unwritten + out.len() + worst(&letter.message) > bytes_max {
                next = Some(letter.place());
                break;
            }
            out.push(b',');
        }
        write(&mut out, &letter)?;
        unwritten -= size(&letter);
    }
    let next = json(&next)?;
    out.extend_from_slice(format!(r#"],"next":{next}}}"#).as_bytes());
    Ok(out)
}

fn json(next: &Option<MessagePlace>) -> Result<String, ApiError> {
    serde_json::to_string(next).map_err(|error| ApiError::internal(error.to_string()))
}

fn write(out: &mut Vec<u8>, letter: &DeadLetter) -> Result<(), ApiError> {
    let with_message = WithMessage {
        evidence: letter,
        message: MessageOut {
            place: None,
            message: &letter.message,
        },
    };
    serde_json::to_writer(out, &with_message).map_err(|error| ApiError::internal(error.to_string()))
}

/// Counts dead letters by class, cause and revision, the largest group first; `max` limits the number of groups. It stops after ten
/// seconds: while `next` is not null, more are counted from there.
#[utoipa::path(get, path = "/v1/processors/{name}/dead-letters/groups", tag = "dead letters",
    params(("name" = String, Path,), Find),
    responses(
        (status = 200, body = DeadLetterGroups),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
    )
)]
pub(super) async fn groups(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    InQuery(find): InQuery<Find>,
) -> Result<Json<DeadLetterGroups>, ApiError> {
    let groups_max = find.max.unwrap_or(LISTED_DEFAULT);
    let (filter, from) = find.understood(app.clock.wall())?;
    let groups = app.session.dead_letters().dead_letter_groups(
        &name,
        &filter,
        from.as_ref(),
        groups_max.max(1),
    );
    Ok(Json(app.unless_stopping(groups).await?))
}

/// One dead letter with all its evidence.
#[utoipa::path(get, path = "/v1/processors/{name}/dead-letters/{topic}/{partition}/{offset}", tag = "dead letters",
    params(("name" = String, Path,), ("topic" = String, Path,), ("partition" = u32, Path,), ("offset" = u64, Path,)),
    responses(
        (status = 200, body = DeadLetterSchema),
        (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody),
    )
)]
pub(super) async fn show(
    app: Called,
    InPath((name, topic, partition, offset)): InPath<(ProcessorName, TopicName, u32, u64)>,
) -> Result<Response, ApiError> {
    let (partition, offset) = (PartitionId(partition), Offset(offset));
    let room = app.answer_room(DEAD_LETTER_ROOM_BYTES).await?;
    let letter = app
        .session
        .dead_letters()
        .dead_letter(&name, &topic, partition, offset)
        .await?;
    let mut out = Vec::new();
    write(&mut out, &letter)?;
    Ok(room.answer("application/json", out))
}
