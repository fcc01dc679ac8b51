//! A backup over HTTP: the archive, as long as it takes.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use millrace_engine::{BackupError, BackupRequest, BackupStream, KnownFile};
use millrace_model::Digest;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::app::Shared;
use super::body::json;
use super::bounds::BACKUP_BODY_BYTES_MAX;
use super::error::{ApiError, ErrorBody};

/// What need not be sent again, from the manifest of an earlier backup.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupBody {
    /// The data directory that the earlier backup is of, as its manifest says; another one is refused.
    directory: Option<String>,
    /// Files of it that are still there.
    #[serde(default)]
    known: Vec<KnownFileBody>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KnownFileBody {
    path: String,
    bytes: u64,
    version: String,
    #[schema(value_type = String)]
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

/// Copies everything as of one instant after this request: a tar archive, whose last file is `backup.json`, which names all others. Without
/// that one it broke off and is no backup. `millrace backup` asks for it, `millrace restore` makes a data directory of it.
#[utoipa::path(post, path = "/v1/backup", tag = "backup",
    request_body(content = Option<BackupBody>, description = "Empty for all files"),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/x-tar", description = "The archive"),
        (status = 400, body = ErrorBody, description = "The body is not understood"),
        (status = 409, body = ErrorBody, description = "Another backup is under way, or what is known is of another data directory"),
        (status = 413, body = ErrorBody, description = "The body is too large"),
        (status = 422, body = ErrorBody, description = "The engine, or the file system of its directory, cannot"),
        (status = 503, body = ErrorBody, description = "The disk is full, or the host stops"),
    )
)]
pub(super) async fn make(
    State(app): Shared,
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

/// The next piece and what follows. An error ends the connection: whoever reads knows that it is not all.
async fn next(rest: Rest) -> Option<(Result<Bytes, std::io::Error>, Rest)> {
    let (mut archive, stopping) = rest?;
    let piece = tokio::select! {
        piece = archive.next() => piece?,
        () = stopping.cancelled() => Err("the host stops".into()),
    };
    match piece {
        Ok(piece) => Some((Ok(piece), Some((archive, stopping)))),
        Err(why) => Some((Err(std::io::Error::other(why.to_string())), None)),
    }
}

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> Self {
        let message = error.to_string();
        match error {
            BackupError::Engine(error) => error.into(),
            BackupError::UnderWay => {
                let hint = "wait until it is over; one host makes one backup at a time";
                Self::conflict("backup-under-way", message, hint)
            }
            BackupError::OtherDirectory { .. } => {
                let hint =
                    "back up to an empty directory, and keep this one as long as you may need it";
                Self::conflict("other-directory", message, hint)
            }
            BackupError::DiskFull => {
                let hint = "free some space, or delete or trim topics; or stop the host and copy its directory";
                Self::unavailable("disk-full", message, hint, 10)
            }
            BackupError::Unsupported => {
                let hint = "run the host with --engine local";
                Self::refused("cannot-back-up", message, hint)
            }
            BackupError::NoLinks(_) => {
                let hint =
                    "stop the host and copy its directory, or take a snapshot of the file system";
                Self::refused("cannot-back-up", message, hint)
            }
            BackupError::Failed(_) => {
                let hint = "the host's log says more";
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "backup-failed",
                    message,
                    hint,
                )
            }
        }
    }
}
