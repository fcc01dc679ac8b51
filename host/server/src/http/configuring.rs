//! The settings that a processor's component reads, over HTTP.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use millrace_broker::ConfigChange;
use millrace_model::{Processor, ProcessorName};
use serde::Serialize;
use utoipa::ToSchema;

use super::app::to_the_end;
use super::by::ByHeader;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::query::InPath;

/// Keys and their values; null removes a key.
pub(super) type ConfigChanges = BTreeMap<String, Option<String>>;

/// The settings that a processor's component reads.
#[derive(Serialize, ToSchema)]
pub(super) struct ConfigBody {
    config: BTreeMap<String, String>,
}

impl From<Processor> for ConfigBody {
    fn from(processor: Processor) -> Self {
        Self {
            config: processor.config.into(),
        }
    }
}

/// The settings that the component reads.
#[utoipa::path(get, path = "/v1/processors/{name}/config", tag = "processors", params(("name" = String, Path,)), responses(
    (status = 200, body = ConfigBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(name): InPath<ProcessorName>,
) -> Result<Json<ConfigBody>, ApiError> {
    let status = app.status(&name).await?;
    Ok(Json(status.processor.into()))
}

/// Replaces the settings that the component reads, without a new revision. Calls that begin afterwards see them.
#[utoipa::path(put, path = "/v1/processors/{name}/config", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = BTreeMap<String, String>,
    responses(
        (status = 200, body = ConfigBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "A key or the whole is over its bound; nothing has changed"),
    )
)]
pub(super) async fn replace(
    app: Called,
    name: InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ConfigBody>, ApiError> {
    let values: BTreeMap<String, String> = app.take_json(&headers, body).await?;
    let values = values.into_iter().map(|(key, value)| (key, Some(value)));
    configure(app, name, true, values.collect()).await
}

/// Changes some of the settings that the component reads, without a new revision: null removes a key, and keys that are not named stay.
/// Calls that begin afterwards see them.
#[utoipa::path(patch, path = "/v1/processors/{name}/config", tag = "processors", params(("name" = String, Path,), ByHeader),
    request_body = BTreeMap<String, Option<String>>,
    responses(
        (status = 200, body = ConfigBody),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "A key or the whole is over its bound; nothing has changed"),
    )
)]
pub(super) async fn amend(
    app: Called,
    name: InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ConfigBody>, ApiError> {
    let values: ConfigChanges = app.take_json(&headers, body).await?;
    configure(app, name, false, values).await
}

async fn configure(
    app: Called,
    InPath(name): InPath<ProcessorName>,
    replaces: bool,
    values: ConfigChanges,
) -> Result<Json<ConfigBody>, ApiError> {
    let change = ConfigChange { replaces, values };
    let session = app.session.clone();
    let configured = async move { Ok(session.processors().configure(&name, change).await?) };
    Ok(Json(to_the_end(configured).await?.into()))
}
