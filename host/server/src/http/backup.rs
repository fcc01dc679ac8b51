//! A backup over HTTP, streamed as an archive.

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use millrace_engine::{BackupRequest, BackupStream, KnownFile};
use millrace_model::Digest;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::body::json;
use super::bounds::BACKUP_BODY_BYTES_MAX;
use super::called::Called;
use super::error::{ApiError, ErrorBody};

/// What need not be sent again, from the manifest of an earlier backup.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupBody {
    /// The data directory of the earlier backup, as its manifest says; another one is refused.
    directory: Option<String>,
    /// Its files that still exist.
    #[serde(default)]
    known: Vec<KnownFileBody>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KnownFileBody {
    path: String,
    bytes: u64,
    version: String,
    sha256: Digest,
}

impl From<BackupBody> for BackupRequest {
    fn from(body: BackupBody) -> Self {
        let known = body.known.into_iter().map(|file| KnownFile {
            path: file.path,
            bytes: file.bytes,
            version: file.version,
            sha256: file.sha256,
        });
        Self {
            directory: body.directory,
            known: known.collect(),
        }
    }
}

/// Copies everything as of one instant after this request: a tar archive whose last file, `backup.json`, lists all others. Without that
/// file the archive is incomplete and not a backup. `millrace backup` uses this route, `millrace restore` turns the archive into a data
/// directory.
#[utoipa::path(post, path = "/v1/backup", tag = "backup",
    request_body(content = Option<BackupBody>, description = "Empty for all files"),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/x-tar", description = "The archive"),
        (status = 400, body = ErrorBody, description = "The body is malformed"),
        (status = 409, body = ErrorBody, description = "Another backup is running, or the earlier backup is of another data directory"),
        (status = 413, body = ErrorBody, description = "The body is too large"),
        (status = 422, body = ErrorBody, description = "The engine, or the file system of its directory, does not support backups"),
        (status = 503, body = ErrorBody, description = "The disk is full, or the host is stopping"),
    )
)]
pub(super) async fn make(
    app: Called,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let taken = app.take_body(&headers, body, BACKUP_BODY_BYTES_MAX).await?;
    let asked: BackupBody = match taken.bytes.trim_ascii().is_empty() {
        true => BackupBody::default(),
        false => json(&taken.bytes)?,
    };
    let archive = app.broker.backup(asked.into()).await?;
    let pieces = stream::unfold(Some((archive, app.stopping.clone())), next);
    let mut response = Body::from_stream(pieces).into_response();
    let archive = HeaderValue::from_static("application/x-tar");
    response.headers_mut().insert(CONTENT_TYPE, archive);
    Ok(response)
}

type Rest = Option<(BackupStream, CancellationToken)>;

/// The next piece, and then the rest. An error closes the connection, so the client knows that the archive is incomplete.
async fn next(rest: Rest) -> Option<(Result<Bytes, std::io::Error>, Rest)> {
    let (mut archive, stopping) = rest?;
    let piece = tokio::select! {
        piece = archive.next() => piece?,
        () = stopping.cancelled() => Err("the host is stopping".into()),
    };
    match piece {
        Ok(piece) => Some((Ok(piece), Some((archive, stopping)))),
        Err(why) => Some((Err(std::io::Error::other(why.to_string())), None)),
    }
}
