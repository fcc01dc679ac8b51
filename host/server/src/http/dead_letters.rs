//! Dead letters over HTTP: list, show, redrive.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use millrace_broker::{DeadLetter, DeadLetterFilter, Redriven};
use millrace_model::{Offset, PartitionId, ProcessorName, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answers::worst;
use super::bounds::{DEAD_LETTER_ROOM_BYTES, DEAD_LETTERS_MAX, DEAD_LETTERS_ROOM_BYTES};
use super::by::By;
use super::error::{ApiError, ErrorBody};
use super::messages::MessageOut;
use super::openapi::{DeadLetterSchema, RedrivenSchema};
use super::query::{InPath, InQuery};
use super::{Shared, to_the_end};

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only those of this class.
    class: String,
    /// Also those that were sent again.
    redriven: bool,
    /// Dead letters at the most.
    #[param(default = 100)]
    max: usize,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self {
            class: String::new(),
            redriven: false,
            max: 100,
        }
    }
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "describes what written writes by hand")]
pub(super) struct DeadLettersBody {
    dead_letters: Vec<DeadLetterSchema>,
}

/// A dead letter's evidence and its message.
#[derive(Serialize)]
struct WithMessage<'a> {
    #[serde(flatten)]
    evidence: &'a DeadLetter,
    message: MessageOut<'a>,
}

/// Dead letters of a processor that were not sent again, oldest first.
#[utoipa::path(get, path = "/v1/processors/{name}/dead-letters", tag = "dead letters",
    params(("name" = String, Path,), ListQuery),
    responses(
        (status = 200, body = DeadLettersBody),
        (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody),
    )
)]
pub(super) async fn list(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    InQuery(query): InQuery<ListQuery>,
) -> Result<Response, ApiError> {
    let filter = DeadLetterFilter {
        class: Some(query.class).filter(|class| !class.is_empty()),
        include_redriven: query.redriven,
        messages_max: query.max.clamp(1, DEAD_LETTERS_MAX),
    };
    let room = app.answer_room(DEAD_LETTERS_ROOM_BYTES).await?;
    let letters = app.broker.dead_letters(&name, filter).await?;
    Ok(room.answer("application/json", written(letters)?))
}

/// As many as there is room for, and one at least; each goes from memory when it is written.
fn written(letters: Vec<DeadLetter>) -> Result<Vec<u8>, ApiError> {
    let size = |letter: &DeadLetter| letter.message.byte_count();
    let mut unwritten: usize = letters.iter().map(size).sum();
    let mut out = br#"{"dead_letters":["#.to_vec();
    for (at, letter) in letters.into_iter().enumerate() {
        if at > 0 {
            if unwritten + out.len() + worst(&letter.message) > DEAD_LETTERS_ROOM_BYTES {
                break;
            }
            out.push(b',');
        }
        write(&mut out, &letter)?;
        unwritten -= size(&letter);
    }
    out.extend_from_slice(b"]}");
    Ok(out)
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
    State(app): Shared,
    InPath((name, topic, partition, offset)): InPath<(ProcessorName, TopicName, u32, u64)>,
) -> Result<Response, ApiError> {
    let (partition, offset) = (PartitionId(partition), Offset(offset));
    let room = app.answer_room(DEAD_LETTER_ROOM_BYTES).await?;
    let letter = app
        .broker
        .dead_letter(&name, &topic, partition, offset)
        .await?;
    let mut out = Vec::new();
    write(&mut out, &letter)?;
    Ok(room.answer("application/json", out))
}

/// Which dead letters to send again: `{"all": true}`, or a list of their places.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RedriveBody {
    #[serde(default)]
    all: bool,
    dead_letters: Option<Vec<PlaceBody>>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlaceBody {
    /// The dead-letter topic.
    #[schema(value_type = String)]
    topic: TopicName,
    partition: u32,
    offset: u64,
}

type Places = Vec<(TopicName, PartitionId, Offset)>;

impl RedriveBody {
    /// `None` is all of them.
    fn which(self) -> Result<Option<Places>, ApiError> {
        let place = |p: PlaceBody| (p.topic, PartitionId(p.partition), Offset(p.offset));
        match (self.all, self.dead_letters) {
            (true, None) => Ok(None),
            (false, Some(places)) => Ok(Some(places.into_iter().map(place).collect())),
            (true, Some(_)) | (false, None) => {
                let message = "it is not said which dead letters to send again";
                let hint =
                    r#"send {"all":true} or {"dead_letters":[{"topic","partition","offset"}]}"#;
                Err(ApiError::malformed(message, hint))
            }
        }
    }
}

/// Sends dead letters again, to this processor only; each at most once.
#[utoipa::path(post, path = "/v1/processors/{name}/dead-letters/redrive", tag = "dead letters",
    params(("name" = String, Path,)), request_body = RedriveBody,
    responses(
        (status = 200, body = RedrivenSchema),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
    )
)]
pub(super) async fn redrive(
    State(app): Shared,
    InPath(name): InPath<ProcessorName>,
    By(by): By,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Redriven>, ApiError> {
    let body: RedriveBody = app.take_json(&headers, body).await?;
    let which = body.which()?;
    tracing::info!(processor = %name, by, "dead letters are sent again");
    to_the_end(async move { Ok(Json(app.broker.redrive(&name, which).await?)) }).await
}
