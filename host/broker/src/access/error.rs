//! Why principals and tokens are not changed.

use millrace_engine::CommitError;
use millrace_model::bounds::{
    PRINCIPAL_RULES_MAX, PRINCIPAL_TOKENS_MAX, PRINCIPALS_BYTES_MAX, PRINCIPALS_MAX,
};
use millrace_model::{Advice, Advised, Code, PrincipalName, Rule, TokenName};

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
        "afterwards nobody could administer principals; give that right to another principal with a token or a password first"
    )]
    LastAdmin,
    /// The caller does not have itself what it would give.
    #[error("nobody gives what they do not have: you do not have all of `{0}`")]
    NotOwn(Rule),
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

impl Advised for PrincipalError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Unknown(_) => Code::UnknownPrincipal.advice(),
            Self::UnknownToken { .. } => Code::UnknownToken.advice(),
            Self::TokenExists { .. } => Code::TokenExists.advice(),
            Self::TooManyTokens(_) | Self::TooManyRules(_) | Self::TooMany | Self::TooMuch(_) => {
                Code::TooManyPrincipals.advice()
            }
            Self::LastAdmin => Code::LastAdmin.advice(),
            Self::NotOwn(_) => Code::NotAllowed
                .hint("ask somebody who has it, and may administer this principal, to grant it"),
            Self::ZeroQuota(_) => Code::Malformed.hint("give a number from 1"),
            Self::Expired => Code::Malformed.hint("give a later time, or none"),
            Self::BadPassword(_) => Code::BadPassword.advice(),
            Self::Random(_) | Self::Catalogue(_) => Code::Internal.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}
