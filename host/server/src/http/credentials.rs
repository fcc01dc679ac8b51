//! Credentials of principals over HTTP: tokens and passwords.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use millrace_broker::{MadeToken, NewToken, PasswordText, SetPassword};
use millrace_model::{Password, PrincipalName, Rule, Timestamp, Token, TokenName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::body::json;
use super::bounds::JSON_BODY_BYTES_MAX;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::query::InPath;

/// A token, without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct TokenBody {
    name: TokenName,
    /// How it begins, after `mr_`.
    id: String,
    /// If present, it may do only what one of these allows, too.
    rules: Option<Vec<Rule>>,
    /// When it expires, in milliseconds since the Unix epoch; null if it does not.
    expires_at: Option<Timestamp>,
    /// When it was made.
    made_at: Timestamp,
    /// Who made it.
    made_by: String,
}

/// A password, without its text, which the host does not know.
#[derive(Serialize, ToSchema)]
#[schema(as = Password)]
pub(super) struct PasswordBody {
    /// When it was set, in milliseconds since the Unix epoch.
    set_at: Timestamp,
    /// Who set it.
    set_by: String,
}

impl From<Password> for PasswordBody {
    fn from(password: Password) -> Self {
        Self {
            set_at: password.set_at,
            set_by: password.set_by,
        }
    }
}

impl From<Token> for TokenBody {
    fn from(token: Token) -> Self {
        Self {
            name: token.name,
            id: token.id,
            rules: token.scope,
            expires_at: token.expires_at,
            made_at: token.made_at,
            made_by: token.made_by,
        }
    }
}

/// A token to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenIn {
    name: TokenName,
    /// If present, it may do only what one of these allows, too.
    rules: Option<Vec<Rule>>,
    /// When it expires, in milliseconds since the Unix epoch; never if omitted.
    expires_at: Option<Timestamp>,
}

/// How a token is replaced.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateIn {
    /// How long the old token is still accepted, in milliseconds.
    #[serde(default)]
    overlap_ms: u64,
}

/// A token that was made, with its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeTokenBody {
    token: TokenBody,
    /// What its holder sends: `Authorization: Bearer` and this. It is in no other answer.
    secret: String,
}

impl From<MadeToken> for MadeTokenBody {
    fn from(made: MadeToken) -> Self {
        Self {
            secret: made.text.reveal().to_owned(),
            token: made.token.into(),
        }
    }
}

/// A password to be set.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordIn {
    /// The password: 12 to 128 visible ASCII characters. If omitted, the host makes one, which is better.
    #[serde(default)]
    password: Option<String>,
}

/// A password that was set.
#[derive(Serialize, ToSchema)]
pub(super) struct SetPasswordBody {
    password: PasswordBody,
    /// The password's text if the host made it: what its holder sends. It is in no other answer.
    secret: Option<String>,
}

impl From<SetPassword> for SetPasswordBody {
    fn from(set: SetPassword) -> Self {
        Self {
            password: set.password.into(),
            secret: set.text.map(|text| text.reveal().to_owned()),
        }
    }
}

/// Makes a token of a principal. Its secret is in this answer, and in no other.
#[utoipa::path(post, path = "/v1/access/principals/{name}/tokens", tag = "access", params(("name" = String, Path,)), request_body = TokenIn, responses(
    (status = 201, body = MadeTokenBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It already has a token of this name"),
    (status = 429, body = ErrorBody, description = "It has as many tokens as it may have"),
))]
pub(super) async fn make_token(
    app: Called,
    InPath(name): InPath<PrincipalName>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<MadeTokenBody>), ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let TokenIn {
        name: token,
        rules,
        expires_at,
    } = json(&taken.bytes)?;
    let new = NewToken {
        name: token,
        scope: rules,
        expires_at,
    };
    let made = to_the_end(async move { Ok(app.session.access().make_token(&name, new).await?) });
    Ok((StatusCode::CREATED, Json(made.await?.into())))
}

/// Makes a new token in place of one, with the same name, rules and lifetime. The old one is accepted for `overlap_ms` from now on.
#[utoipa::path(post, path = "/v1/access/principals/{name}/tokens/{token}/rotate", tag = "access",
    params(("name" = String, Path,), ("token" = String, Path,)), request_body = RotateIn, responses(
    (status = 201, body = MadeTokenBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 429, body = ErrorBody, description = "It has as many tokens as it may have"),
))]
pub(super) async fn rotate_token(
    app: Called,
    InPath((name, token)): InPath<(PrincipalName, TokenName)>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<MadeTokenBody>), ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let RotateIn { overlap_ms } = json(&taken.bytes)?;
    let overlap = Duration::from_millis(overlap_ms);
    let rotated = to_the_end(async move {
        let access = app.session.access();
        Ok(access.rotate_token(&name, &token, overlap).await?)
    });
    Ok((StatusCode::CREATED, Json(rotated.await?.into())))
}

/// Revokes a token. It is refused from now on, and what is under way with it ends.
#[utoipa::path(delete, path = "/v1/access/principals/{name}/tokens/{token}", tag = "access",
    params(("name" = String, Path,), ("token" = String, Path,)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Nobody could administer principals afterwards"),
))]
pub(super) async fn revoke_token(
    app: Called,
    InPath((name, token)): InPath<(PrincipalName, TokenName)>,
) -> Result<StatusCode, ApiError> {
    to_the_end(async move { Ok(app.session.access().revoke_token(&name, &token).await?) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets the password of a principal, for clients that cannot send a token. What is under way with the one before ends.
#[utoipa::path(put, path = "/v1/access/principals/{name}/password", tag = "access", params(("name" = String, Path,)), request_body = PasswordIn, responses(
    (status = 200, body = SetPasswordBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 429, body = ErrorBody, description = "All principals have as many bytes as they may have"),
))]
pub(super) async fn set_password(
    app: Called,
    InPath(name): InPath<PrincipalName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SetPasswordBody>, ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let PasswordIn { password } = json(&taken.bytes)?;
    let chosen = password.map(PasswordText::chosen).transpose()?;
    to_the_end(async move {
        let set = app.session.access().set_password(&name, chosen).await?;
        Ok(Json(set.into()))
    })
    .await
}

/// Removes the password of a principal, if it has one. It is refused from now on, and what is under way with it ends.
#[utoipa::path(delete, path = "/v1/access/principals/{name}/password", tag = "access", params(("name" = String, Path,)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Nobody could administer principals afterwards"),
))]
pub(super) async fn remove_password(
    app: Called,
    InPath(name): InPath<PrincipalName>,
) -> Result<StatusCode, ApiError> {
    to_the_end(async move { Ok(app.session.access().remove_password(&name).await?) }).await?;
    Ok(StatusCode::NO_CONTENT)
}
