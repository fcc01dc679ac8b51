//! Principals over HTTP: their rules, quotas and identities, who may do what, and the audit log.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use millrace_broker::{AuditQuery, AuditRecords, Standing};
use millrace_model::{
    Identity, Offset, Principal, PrincipalName, Quotas, Right, Rights, Rule, Target, Timestamp,
};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::app::to_the_end;
use super::body::json;
use super::bounds::JSON_BODY_BYTES_MAX;
use super::called::Called;
use super::credentials::{PasswordBody, TokenBody};
use super::error::{ApiError, ErrorBody};
use super::proving::Credentials;
use super::query::{InPath, InQuery};

/// A principal: a person or a program that calls the host.
#[derive(Serialize, ToSchema)]
#[schema(as = Principal)]
pub(super) struct PrincipalBody {
    name: PrincipalName,
    /// What it may do; nothing without rules.
    #[schema(example = json!(["producer on topic:orders-*"]))]
    rules: Vec<Rule>,
    /// Its tokens, oldest first.
    tokens: Vec<TokenBody>,
    /// How much it may send, read and ask for.
    quotas: QuotasBody,
    /// Its password; null if it has none.
    password: Option<PasswordBody>,
    /// Who it is to others than this host: by names in a client's certificate, or as a user of the machine at the Unix socket.
    #[schema(example = json!(["dns:billing.internal", "uri:spiffe://prod/billing"]))]
    identities: Vec<Identity>,
    /// When it was made, in milliseconds since the Unix epoch.
    made_at: Timestamp,
    /// Who made it.
    made_by: String,
}

/// Limits per second and host; null limits nothing.
#[derive(Serialize, ToSchema)]
#[schema(as = Quotas)]
pub(super) struct QuotasBody {
    /// Bytes of keys, values and headers that it sends.
    produced_bytes: Option<u64>,
    /// Messages that it sends.
    produced_messages: Option<u64>,
    /// Bytes of keys, values and headers that it reads.
    read_bytes: Option<u64>,
    /// Messages that it reads.
    read_messages: Option<u64>,
    /// Requests of any kind.
    requests: Option<u64>,
}

impl From<Quotas> for QuotasBody {
    fn from(quotas: Quotas) -> Self {
        Self {
            produced_bytes: quotas.produced_bytes,
            produced_messages: quotas.produced_messages,
            read_bytes: quotas.read_bytes,
            read_messages: quotas.read_messages,
            requests: quotas.requests,
        }
    }
}

/// Changes of quotas: what is omitted stays, and null removes a limit.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct QuotasIn {
    #[serde(deserialize_with = "named")]
    #[schema(value_type = Option<u64>)]
    produced_bytes: Option<Option<u64>>,
    #[serde(deserialize_with = "named")]
    #[schema(value_type = Option<u64>)]
    produced_messages: Option<Option<u64>>,
    #[serde(deserialize_with = "named")]
    #[schema(value_type = Option<u64>)]
    read_bytes: Option<Option<u64>>,
    #[serde(deserialize_with = "named")]
    #[schema(value_type = Option<u64>)]
    read_messages: Option<Option<u64>>,
    #[serde(deserialize_with = "named")]
    #[schema(value_type = Option<u64>)]
    requests: Option<Option<u64>>,
}

impl QuotasIn {
    fn applied(&self, quotas: Quotas) -> Quotas {
        Quotas {
            produced_bytes: self.produced_bytes.unwrap_or(quotas.produced_bytes),
            produced_messages: self.produced_messages.unwrap_or(quotas.produced_messages),
            read_bytes: self.read_bytes.unwrap_or(quotas.read_bytes),
            read_messages: self.read_messages.unwrap_or(quotas.read_messages),
            requests: self.requests.unwrap_or(quotas.requests),
        }
    }
}

/// `null` means none; only an omitted field means unchanged.
fn named<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl From<Principal> for PrincipalBody {
    fn from(principal: Principal) -> Self {
        Self {
            name: principal.name,
            rules: principal.rules,
            tokens: principal.tokens.into_iter().map(TokenBody::from).collect(),
            quotas: principal.quotas.into(),
            password: principal.password.map(PasswordBody::from),
            identities: principal.identities,
            made_at: principal.made_at,
            made_by: principal.made_by,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct PrincipalsBody {
    /// By name.
    principals: Vec<PrincipalBody>,
}

/// What a principal may do.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RulesIn {
    #[schema(example = json!(["producer on topic:orders-*"]))]
    rules: Vec<Rule>,
}

/// One rule.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleIn {
    #[schema(example = "producer on topic:orders-*")]
    rule: Rule,
}

/// Who sends the request.
#[derive(Serialize, ToSchema)]
pub(super) struct SelfBody {
    /// The principal; null if nothing says which it is.
    principal: Option<PrincipalName>,
    /// What says who the sender is; null if nothing does.
    credentials: Option<Credentials>,
    /// Who the connection says that the sender is, by its certificate or as a user of the machine. A principal that has one of these is the
    /// sender of a request without a token.
    identities: Vec<Identity>,
    /// Whether the sender may do everything: because this host asks nobody for a token, or because the sender is its own user, or root, at
    /// the Unix socket.
    everything: bool,
    /// The principal's rules.
    rules: Vec<Rule>,
    /// If present, the token may do only what one of these allows, too.
    token_rules: Option<Vec<Rule>>,
    /// Whom the sender is, as its identity provider names it; null without a JWT.
    subject: Option<String>,
    /// If present, the keys of messages and state that the sender may touch; one that ends with `*` stands for all that begin so.
    keys: Option<Vec<String>>,
}

/// A right on a thing.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CheckParams {
    /// The right, such as `produce`.
    right: String,
    /// The thing, such as `topic:orders`.
    on: String,
}

/// Who has a right on a thing.
#[derive(Serialize, ToSchema)]
pub(super) struct CheckBody {
    /// By name.
    allowed: Vec<AllowedBody>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AllowedBody {
    principal: PrincipalName,
    /// The first of its rules that says so.
    rule: Rule,
}

/// Which records of the audit log.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditParams {
    /// The maximum number of records, up to 1000.
    #[serde(default = "audit_listed")]
    #[param(default = 100)]
    max: usize,
    /// Only records before this one: `next` of an earlier answer.
    #[param(value_type = Option<u64>)]
    before: Option<Offset>,
    /// Only records of this principal.
    #[param(value_type = Option<String>)]
    principal: Option<PrincipalName>,
    /// Only refusals.
    #[serde(default)]
    #[param(default = false)]
    refused: bool,
}

const fn audit_listed() -> usize {
    100
}

/// Who sends this request, and what it may do.
#[utoipa::path(get, path = "/v1/access/self", tag = "access", responses((status = 200, body = SelfBody)))]
pub(super) async fn oneself(app: Called) -> Json<SelfBody> {
    let standing = app.session.caller().rights();
    let known = match standing {
        Standing::Principal(known) => Some(known),
        Standing::Everything | Standing::Nobody => None,
    };
    Json(SelfBody {
        principal: standing.principal().cloned(),
        credentials: app.proof.0,
        identities: app.proof.1.clone(),
        everything: matches!(standing, Standing::Everything),
        rules: known.map_or_else(Vec::new, |known| known.rules.clone()),
        token_rules: known.and_then(|known| known.scope.clone()),
        subject: known.and_then(|known| known.subject.as_deref().map(str::to_owned)),
        keys: known.and_then(|known| {
            let keys = known.keys.as_ref()?.iter();
            Some(keys.map(ToString::to_string).collect())
        }),
    })
}

/// The principals, by name.
#[utoipa::path(get, path = "/v1/access/principals", tag = "access", responses((status = 200, body = PrincipalsBody)))]
pub(super) async fn list(app: Called) -> Json<PrincipalsBody> {
    let principals = app.session.access().principals().into_iter();
    Json(PrincipalsBody {
        principals: principals.map(PrincipalBody::from).collect(),
    })
}

/// One principal.
#[utoipa::path(get, path = "/v1/access/principals/{name}", tag = "access", params(("name" = String, Path,)), responses(
    (status = 200, body = PrincipalBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(name): InPath<PrincipalName>,
) -> Result<Json<PrincipalBody>, ApiError> {
    Ok(Json(app.session.access().principal(&name)?.into()))
}

/// Creates a principal, or replaces the rules of one that exists. Its tokens stay; what is under way with them ends if the rules are others.
#[utoipa::path(put, path = "/v1/access/principals/{name}", tag = "access", params(("name" = String, Path,)), request_body = RulesIn, responses(
    (status = 200, body = PrincipalBody),
    (status = 400, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Nobody could administer principals afterwards"),
    (status = 429, body = ErrorBody, description = "The maximum number of principals or rules exists"),
))]
pub(super) async fn put(
    app: Called,
    InPath(name): InPath<PrincipalName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PrincipalBody>, ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let RulesIn { rules } = json(&taken.bytes)?;
    to_the_end(async move {
        let set = app.session.access().set_principal(&name, rules).await?;
        Ok(Json(set.into()))
    })
    .await
}

/// Deletes a principal. All its tokens are refused from now on.
#[utoipa::path(delete, path = "/v1/access/principals/{name}", tag = "access", params(("name" = String, Path,)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Nobody could administer principals afterwards"),
))]
pub(super) async fn remove(
    app: Called,
    InPath(name): InPath<PrincipalName>,
) -> Result<StatusCode, ApiError> {
    to_the_end(async move { Ok(app.session.access().delete_principal(&name).await?) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes how much a principal may send, read and ask for in a second, at each host. Over a quota, requests get 429 `over-quota` with the
/// time to come back. Quotas of a principal that exists can be changed; what it has used stays used.
#[utoipa::path(patch, path = "/v1/access/principals/{name}/quotas", tag = "access", params(("name" = String, Path,)), request_body = QuotasIn, responses(
    (status = 200, body = PrincipalBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn limit(
    app: Called,
    InPath(name): InPath<PrincipalName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PrincipalBody>, ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let change: QuotasIn = json(&taken.bytes)?;
    to_the_end(async move {
        let access = app.session.access();
        let changed = access.change_quotas(&name, |quotas| change.applied(quotas));
        Ok(Json(changed.await?.into()))
    })
    .await
}

/// Adds a rule to a principal, which is created if it does not exist.
#[utoipa::path(post, path = "/v1/access/principals/{name}/grant", tag = "access", params(("name" = String, Path,)), request_body = RuleIn, responses(
    (status = 200, body = PrincipalBody),
    (status = 400, body = ErrorBody),
    (status = 429, body = ErrorBody, description = "The maximum number of principals or rules exists"),
))]
pub(super) async fn grant(
    app: Called,
    InPath(name): InPath<PrincipalName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PrincipalBody>, ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let RuleIn { rule } = json(&taken.bytes)?;
    to_the_end(async move { Ok(Json(app.session.access().grant(&name, rule).await?.into())) }).await
}

/// Takes a rule from a principal, if it has it.
#[utoipa::path(post, path = "/v1/access/principals/{name}/withdraw", tag = "access", params(("name" = String, Path,)), request_body = RuleIn, responses(
    (status = 200, body = PrincipalBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Nobody could administer principals afterwards"),
))]
pub(super) async fn withdraw(
    app: Called,
    InPath(name): InPath<PrincipalName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PrincipalBody>, ApiError> {
    let taken = app.take_body(&headers, body, JSON_BODY_BYTES_MAX).await?;
    let RuleIn { rule } = json(&taken.bytes)?;
    to_the_end(async move {
        let changed = app.session.access().withdraw(&name, &rule).await?;
        Ok(Json(changed.into()))
    })
    .await
}

/// The audit log, newest first: what was changed, and what was refused. One answer looks at 10,000 records at most, so it can have fewer than
/// asked for and still a `next`. The log is the topic `host.audit`; read that to have all of it.
#[utoipa::path(get, path = "/v1/access/audit", tag = "access", params(AuditParams), responses(
    (status = 200, body = AuditRecords),
    (status = 400, body = ErrorBody),
))]
pub(super) async fn audit(
    app: Called,
    InQuery(params): InQuery<AuditParams>,
) -> Result<Json<AuditRecords>, ApiError> {
    let query = AuditQuery {
        max: params.max,
        before: params.before,
        principal: params.principal,
        only_refused: params.refused,
    };
    Ok(Json(app.session.audit().records(&query).await?))
}

/// Who has a right on a thing, and by which rule.
#[utoipa::path(get, path = "/v1/access/check", tag = "access", params(CheckParams), responses(
    (status = 200, body = CheckBody),
    (status = 400, body = ErrorBody),
))]
pub(super) async fn check(
    app: Called,
    InQuery(params): InQuery<CheckParams>,
) -> Result<Json<CheckBody>, ApiError> {
    let right: Right = params.right.parse()?;
    let on: Target = params.on.parse()?;
    let resource = on.thing().ok_or_else(|| {
        let message = format!("on={} names no one thing", params.on);
        ApiError::malformed(message, "name one, such as topic:orders, or host")
    })?;
    let allowed = app.session.access().who_may(Rights::of(&[right]), resource);
    let allowed = allowed.into_iter().map(|allowed| AllowedBody {
        principal: allowed.principal,
        rule: allowed.rule,
    });
    Ok(Json(CheckBody {
        allowed: allowed.collect(),
    }))
}

/// Gives a principal an identity: what says in a client's certificate, or at the Unix socket, who it is. Such as `dns:billing.internal`,
/// percent-encoded.
#[utoipa::path(put, path = "/v1/access/principals/{name}/identities/{identity}", tag = "access",
    params(("name" = String, Path,), ("identity" = String, Path,)), responses(
    (status = 200, body = PrincipalBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Another principal has it"),
    (status = 429, body = ErrorBody, description = "It has as many identities as it may have"),
))]
pub(super) async fn add_identity(
    app: Called,
    InPath((name, identity)): InPath<(PrincipalName, String)>,
) -> Result<Json<PrincipalBody>, ApiError> {
    let identity: Identity = identity.parse()?;
    to_the_end(async move {
        let changed = app.session.access().add_identity(&name, identity).await?;
        Ok(Json(changed.into()))
    })
    .await
}

/// Takes an identity from a principal. It proves nothing from now on, and what is under way with it ends.
#[utoipa::path(delete, path = "/v1/access/principals/{name}/identities/{identity}", tag = "access",
    params(("name" = String, Path,), ("identity" = String, Path,)), responses(
    (status = 204),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "Nobody could administer principals afterwards"),
))]
pub(super) async fn remove_identity(
    app: Called,
    InPath((name, identity)): InPath<(PrincipalName, String)>,
) -> Result<StatusCode, ApiError> {
    let identity: Identity = identity.parse()?;
    to_the_end(async move {
        let access = app.session.access();
        Ok(access.remove_identity(&name, &identity).await?)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
