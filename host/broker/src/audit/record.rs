//! One record of the audit log.

use std::net::IpAddr;

use millrace_model::{PrincipalName, Resource, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ground::caller::Caller;
use crate::ground::notes::Note;

/// The verb of a record about credentials that were missing or refused.
const AUTHENTICATE: &str = "authenticate";

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AuditResult {
    /// It was done.
    Done,
    /// The caller may not do it, or did not prove who it is.
    Refused,
    /// It was allowed, and did not succeed.
    Failed,
    /// The caller left before the answer: it may have been done.
    Unanswered,
}

/// An administrative verb, or a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// When, in milliseconds since the Unix epoch.
    pub at: Timestamp,
    /// Who; null without credentials.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub principal: Option<PrincipalName>,
    /// What a caller without credentials calls itself; with a principal, its user, as an identity provider names them.
    pub by: Option<String>,
    /// The address of its connection.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub from: Option<IpAddr>,
    /// The id of the request, as its answer and the host's log have it.
    pub request: Option<String>,
    /// What was asked for, such as `deploy-processor`, or `authenticate`.
    pub verb: String,
    /// What it was about, such as `processor:totals`; null if it has no name.
    pub on: Option<String>,
    /// What became of it.
    pub result: AuditResult,
    /// Why not, as in docs/errors.md; null for what was done.
    pub code: Option<String>,
    /// How many such requests there were: refusals of one second that are alike are one record, with the request id of the first.
    pub count: u64,
}

impl AuditRecord {
    /// A record of one request; without a note it is about the caller's credentials.
    pub(super) fn of(
        at: Timestamp,
        caller: &Caller,
        note: Option<Note>,
        result: AuditResult,
        code: Option<&str>,
    ) -> Self {
        let principal = caller.rights().principal().cloned();
        let by = match principal {
            Some(_) => caller.rights().subject().map(ToOwned::to_owned),
            None => caller.name().map(ToOwned::to_owned),
        };
        let on = note.as_ref().filter(|note| !note.name.is_empty());
        let on = on.map(|note| Resource::new(note.verb.kind(), &note.name).to_string());
        Self {
            at,
            principal,
            by,
            from: caller.address(),
            request: caller.request().map(ToOwned::to_owned),
            verb: note.map_or_else(|| AUTHENTICATE.to_owned(), |note| note.verb.id()),
            on,
            result,
            code: code.map(ToOwned::to_owned),
            count: 1,
        }
    }
}
