//! Schedules over HTTP: create, change, list, pause, delete.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use millrace_broker::{ScheduleError, ScheduleStatus};
use millrace_model::{Cron, Header, PartitionId, ScheduleName, ScheduleSpec, Timestamp, TopicName};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::app::to_the_end;
use super::body::json;
use super::bounds::JSON_BODY_BYTES_MAX;
use super::by::ByHeader;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::messages::{HeaderValue, ListedIn, Pairs, headers_of, show_headers, value_bytes};
use super::query::InPath;

/// A schedule's definition.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleIn<'a> {
    /// The topic for its messages.
    topic: TopicName,
    /// When, in UTC: minute, hour, day, month and day of the week, optionally with seconds first.
    #[schema(example = "*/5 * * * *")]
    cron: String,
    key: Option<String>,
    /// A string is stored as its text, other JSON as its compact text; null or an omitted value is a message without a value.
    #[serde(borrow)]
    #[schema(value_type = Option<serde_json::Value>)]
    value: Option<&'a RawValue>,
    /// From name to value, or to a list of values; all of them text.
    #[schema(value_type = Option<std::collections::HashMap<String, HeaderValue>>)]
    headers: Option<Pairs>,
    /// All headers in order, as pairs of name and value. Must agree with `headers` if both are given.
    #[schema(value_type = Option<Vec<Vec<String>>>)]
    header_list: Option<Vec<ListedIn>>,
    /// The topic's partitioner chooses if omitted.
    partition: Option<u32>,
}

impl ScheduleIn<'_> {
    fn spec(self) -> Result<ScheduleSpec, ApiError> {
        let cron = Cron::parse(&self.cron)?;
        let value = value_bytes(self.value)?;
        let text = |bytes: bytes::Bytes| String::from_utf8_lossy(&bytes).into_owned();
        let header = |header: Header| match (str::from_utf8(&header.name), header.value) {
            (Ok(name), Some(value)) if str::from_utf8(&value).is_ok() => {
                Ok((name.to_owned(), text(value)))
            }
            _ => {
                let message = "the names and values of a schedule's headers are text";
                Err(ApiError::malformed(message, "use UTF-8, and no null"))
            }
        };
        let headers = headers_of(self.headers, None, self.header_list)?.into_iter();
        Ok(ScheduleSpec {
            topic: self.topic,
            cron,
            key: self.key,
            value: value.map(text),
            headers: headers.map(header).collect::<Result<_, _>>()?,
            partition: self.partition.map(PartitionId),
        })
    }
}

/// How a schedule's headers look, for the OpenAPI document.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes what Shown writes by hand")]
struct ScheduleHeaders {
    /// From name to value, or to a list of values if the name repeats.
    headers: std::collections::HashMap<String, HeaderValue>,
    /// All headers in order, as pairs of name and value, where there are several names.
    header_list: Option<Vec<Vec<String>>>,
}

struct Shown(Vec<Header>);

impl From<Vec<(String, String)>> for Shown {
    fn from(headers: Vec<(String, String)>) -> Self {
        let header = |(name, value): (String, String)| Header {
            name: name.into(),
            value: Some(value.into()),
        };
        Self(headers.into_iter().map(header).collect())
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        show_headers(&mut map, &self.0)?;
        map.end()
    }
}

/// A schedule and its status.
#[derive(Serialize, ToSchema)]
#[schema(as = Schedule)]
pub(super) struct ScheduleBody {
    name: ScheduleName,
    topic: TopicName,
    cron: String,
    key: Option<String>,
    value: Option<String>,
    #[serde(flatten)]
    #[schema(value_type = ScheduleHeaders)]
    headers: Shown,
    partition: Option<PartitionId>,
    paused: bool,
    /// When the next message is due, in milliseconds since the Unix epoch.
    next: Timestamp,
    /// When the last one was due.
    last: Option<Timestamp>,
    /// Messages created so far.
    made: u64,
    /// When it was last run by hand, in milliseconds since the Unix epoch.
    last_run: Option<Timestamp>,
    /// Who ran it, as claimed.
    last_run_by: Option<String>,
    /// Why the last one could not be created; null if it was.
    problem: Option<String>,
    /// Why it creates none at its pattern's times, and until when: the clock was set back. Null if it follows its pattern.
    waiting: Option<String>,
}

impl From<ScheduleStatus> for ScheduleBody {
    fn from(status: ScheduleStatus) -> Self {
        let schedule = status.schedule;
        let spec = schedule.spec;
        Self {
            name: schedule.name,
            topic: spec.topic,
            cron: spec.cron.into(),
            key: spec.key,
            value: spec.value,
            headers: Shown::from(spec.headers),
            partition: spec.partition,
            paused: schedule.paused,
            next: schedule.next,
            last: schedule.last,
            made: schedule.made,
            last_run: schedule.last_run.as_ref().map(|run| run.at),
            last_run_by: schedule.last_run.and_then(|run| run.by),
            problem: status.problem,
            waiting: status.waiting,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct SchedulesBody {
    /// By name; at most 1,000.
    schedules: Vec<ScheduleBody>,
}

fn unknown(name: ScheduleName) -> ApiError {
    ScheduleError::Unknown(name).into()
}

/// All schedules, by name.
#[utoipa::path(get, path = "/v1/schedules", tag = "schedules", responses((status = 200, body = SchedulesBody)))]
pub(super) async fn list(app: Called) -> Json<SchedulesBody> {
    let schedules = app.session.schedules().schedules().into_iter();
    Json(SchedulesBody {
        schedules: schedules.map(ScheduleBody::from).collect(),
    })
}

/// One schedule and its status.
#[utoipa::path(get, path = "/v1/schedules/{name}", tag = "schedules", params(("name" = String, Path,)), responses(
    (status = 200, body = ScheduleBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(name): InPath<ScheduleName>,
) -> Result<Json<ScheduleBody>, ApiError> {
    let found = app.session.schedules().schedule(&name);
    Ok(Json(found.ok_or_else(|| unknown(name))?.into()))
}

/// Creates or changes a schedule: at each time it appends a message to its topic, with the headers `millrace-schedule` (its name),
/// `millrace-due` (the time) and, after missed times, `millrace-missed` (how many more it stands for).
#[utoipa::path(put, path = "/v1/schedules/{name}", tag = "schedules", params(("name" = String, Path,)), request_body = ScheduleIn, responses(
    (status = 200, body = ScheduleBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody, description = "Its topic does not exist"),
    (status = 409, body = ErrorBody, description = "The maximum number of schedules exists"),
    (status = 413, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "The pattern is invalid, or the topic would refuse the message"),
))]
pub(super) async fn put(
    app: Called,
    InPath(name): InPath<ScheduleName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ScheduleBody>, ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let spec = json::<ScheduleIn<'_>>(&taken.bytes)?.spec()?;
    to_the_end(async move {
        Ok(Json(
            app.session
                .schedules()
                .put_schedule(&name, spec)
                .await?
                .into(),
        ))
    })
    .await
}

/// Deletes a schedule; the messages that it created stay.
#[utoipa::path(delete, path = "/v1/schedules/{name}", tag = "schedules", params(("name" = String, Path,)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn remove(
    app: Called,
    InPath(name): InPath<ScheduleName>,
) -> Result<StatusCode, ApiError> {
    to_the_end(async move {
        app.session.schedules().delete_schedule(&name).await?;
        app.forget_metrics("schedule", name.as_str());
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Creates no messages until it is resumed.
#[utoipa::path(post, path = "/v1/schedules/{name}/pause", tag = "schedules", params(("name" = String, Path,)), responses(
    (status = 200, body = ScheduleBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn pause(
    app: Called,
    InPath(name): InPath<ScheduleName>,
) -> Result<Json<ScheduleBody>, ApiError> {
    let paused = async move {
        Ok(app
            .session
            .schedules()
            .pause_schedule(&name, true)
            .await?
            .into())
    };
    to_the_end(paused).await.map(Json)
}

/// Resumes with the next time; times missed during the pause are skipped.
#[utoipa::path(post, path = "/v1/schedules/{name}/resume", tag = "schedules", params(("name" = String, Path,)), responses(
    (status = 200, body = ScheduleBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn resume(
    app: Called,
    InPath(name): InPath<ScheduleName>,
) -> Result<Json<ScheduleBody>, ApiError> {
    let resumed = async move {
        Ok(app
            .session
            .schedules()
            .pause_schedule(&name, false)
            .await?
            .into())
    };
    to_the_end(resumed).await.map(Json)
}

/// Creates its message now, once, even while it is paused. Its next time does not change. The message also has the header
/// `millrace-run-by`, and who ran it is stored with the schedule.
#[utoipa::path(post, path = "/v1/schedules/{name}/run", tag = "schedules", params(("name" = String, Path,), ByHeader), responses(
    (status = 200, body = ScheduleBody),
    (status = 404, body = ErrorBody, description = "The schedule does not exist, or its topic was deleted"),
    (status = 413, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "The topic no longer accepts its message"),
    (status = 503, body = ErrorBody, description = "No message was created; try again"),
))]
pub(super) async fn run(
    app: Called,
    InPath(name): InPath<ScheduleName>,
) -> Result<Json<ScheduleBody>, ApiError> {
    let session = app.session.clone();
    let run = async move { Ok(session.schedules().run_schedule(&name).await?.into()) };
    to_the_end(run).await.map(Json)
}
