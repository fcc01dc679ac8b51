//! Why principals and tokens are not changed.

use millrace_engine::CommitError;
use millrace_model::bounds::{
    PRINCIPAL_IDENTITIES_MAX, PRINCIPAL_RULES_MAX, PRINCIPAL_TOKENS_MAX, PRINCIPALS_BYTES_MAX,
    PRINCIPALS_MAX,
};
use millrace_model::{Advice, Advised, Code, Identity, PrincipalName, Rule, TokenName};

use crate::catalogue::deciding::decision_errors;
use crate::ground::standing::Forbidden;

/// Why a principal or a token did not change. It is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum PrincipalError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such principal.
    #[error("principal {0} does not exist")]
    Unknown(PrincipalName),
    /// No such token.
    #[error("principal {principal} has no token {token}")]
    UnknownToken {
        /// The principal.
        principal: PrincipalName,
        /// The token.
        token: TokenName,
    },
    /// The name is taken.
    #[error("principal {principal} already has a token {token}; choose another name, or rotate it")]
    TokenExists {
        /// The principal.
        principal: PrincipalName,
        /// The token.
        token: TokenName,
    },
    /// The maximum number of tokens exists.
    #[error(
        "principal {0} already has {PRINCIPAL_TOKENS_MAX} tokens, the maximum; revoke one first"
    )]
    TooManyTokens(PrincipalName),
    /// It does not have the identity.
    #[error("principal {principal} does not have the identity {identity}")]
    UnknownIdentity {
        /// The principal.
        principal: PrincipalName,
        /// The identity.
        identity: Identity,
    },
    /// Another principal has the identity.
    #[error("{} already has the identity {identity}", holder(.of.as_ref()))]
    IdentityTaken {
        /// The identity.
        identity: Identity,
        /// Whose it is; `None` if the caller may not see that principal.
        of: Option<PrincipalName>,
    },
    /// The maximum number of identities exists.
    #[error(
        "principal {0} already has {PRINCIPAL_IDENTITIES_MAX} identities, the maximum; remove one first"
    )]
    TooManyIdentities(PrincipalName),
    /// Too many rules.
    #[error(
        "{0} rules; the maximum is {PRINCIPAL_RULES_MAX}: let rules cover several things (`topic:orders-*`)"
    )]
    TooManyRules(usize),
    /// The maximum number of principals exists.
    #[error("there are already {PRINCIPALS_MAX} principals, the maximum; delete one first")]
    TooMany,
    /// All principals together would exceed the bound.
    #[error(
        "all principals would have {0} bytes; the maximum is {PRINCIPALS_BYTES_MAX}: use fewer rules and tokens"
    )]
    TooMuch(usize),
    /// Nobody could administer principals afterwards.
    #[error(
        "afterwards nobody could administer principals; give that right to another principal with a token, a password or an identity first"
    )]
    LastAdmin,
    /// The caller does not have itself what it would give.
    #[error("nobody gives what they do not have: you do not have all of `{0}`")]
    NotOwn(Rule),
    /// What the caller proved itself with counts no more.
    #[error(
        "the credentials of this request counted no more before it was its turn; nothing was changed"
    )]
    Ended,
    /// A quota of nothing.
    #[error(
        "a quota of 0 ({0}) would let nothing through; withdraw the right instead, or omit the quota"
    )]
    ZeroQuota(&'static str),
    /// The expiry is not in the future.
    #[error("the token would already have expired; give it a time in the future")]
    Expired,
    /// It cannot be a password.
    #[error("this cannot be a password: {0}")]
    BadPassword(&'static str),
    /// The system has no random numbers.
    #[error("the system has no random numbers for a secret: {0}")]
    Random(#[from] getrandom::Error),
    /// An entry of the catalogue cannot be read.
    #[error("{0}")]
    Catalogue(String),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    PrincipalError: PrincipalError::Commit;
}

fn holder(of: Option<&PrincipalName>) -> String {
    of.map_or_else(
        || "another principal".to_owned(),
        |of| format!("principal {of}"),
    )
}

impl Advised for PrincipalError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Unknown(_) => Code::UnknownPrincipal.advice(),
            Self::UnknownToken { .. } => Code::UnknownToken.advice(),
            Self::TokenExists { .. } => Code::TokenExists.advice(),
            Self::UnknownIdentity { .. } => Code::UnknownIdentity.advice(),
            Self::IdentityTaken { identity, of } => match of {
                Some(of) => Code::IdentityTaken.hint(format!(
                    "take it from that principal first: `millrace access identity remove {of} '{identity}'`"
                )),
                None => Code::IdentityTaken.advice(),
            },
            Self::TooManyTokens(_)
            | Self::TooManyIdentities(_)
            | Self::TooManyRules(_)
            | Self::TooMany
            | Self::TooMuch(_) => Code::TooManyPrincipals.advice(),
            Self::LastAdmin => Code::LastAdmin.advice(),
            Self::NotOwn(_) => Code::NotAllowed
                .hint("ask somebody who has it, and may administer this principal, to grant it"),
            Self::Ended => Code::CredentialsRefused.advice(),
            Self::ZeroQuota(_) => Code::Malformed.hint("give a number from 1"),
            Self::Expired => Code::Malformed.hint("give a later time, or none"),
            Self::BadPassword(_) => Code::BadPassword.advice(),
            Self::Random(_) | Self::Catalogue(_) => Code::Internal.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}
