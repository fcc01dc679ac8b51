//! Why a JWT proves nothing. The texts are for whoever sent it, so they say what to do; none of them contains a part of the JWT that is
//! secret.

use millrace_broker::Unproved;
use millrace_model::bounds::RESOURCE_NAME_CHARS_MAX;
use millrace_model::{Advice, Advised, Code};

use super::bounds::{CLAIMS_DEPTH_MAX, JWT_BYTES_MAX};

/// Characters of names from a JWT that a text contains.
const SHOWN_CHARS: usize = RESOURCE_NAME_CHARS_MAX;

/// Why a JWT proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the JWT has {0} bytes; the maximum is {JWT_BYTES_MAX}")]
    TooLong(usize),
    #[error("the JWT is not three parts in base64url, each without padding")]
    NotCompact,
    #[error("the JWT's {0} is not a JSON object")]
    NotJson(&'static str),
    #[error("the JWT's {0} has a name twice, so it is unclear which counts")]
    Twice(&'static str),
    #[error("the JWT's {0} is nested deeper than {CLAIMS_DEPTH_MAX} levels")]
    TooDeep(&'static str),
    #[error(
        "the JWT is signed with the algorithm {0:?}, which the provider's setting `algorithms` does not have"
    )]
    Algorithm(String),
    #[error("the JWT's header has `crit`, and names extensions that this host does not know")]
    Critical,
    #[error("the JWT's type is {0:?}; this host takes JWT and at+jwt")]
    Type(String),
    #[error("this host has no provider with the JWT's issuer {0:?}")]
    UnknownIssuer(String),
    #[error(
        "the JWT is not for this host: its audience has none of those in the provider's setting `audience`"
    )]
    Audience,
    #[error("the keys of the JWT's provider could not be fetched yet")]
    NoKeys,
    #[error(
        "the JWT's provider has no key with its `kid`, or no single key for its algorithm if it names none"
    )]
    UnknownKey,
    #[error("the JWT's signature is not that of its provider's key")]
    Signature,
    #[error("the JWT has expired")]
    Expired,
    #[error("the JWT is valid only later")]
    NotYet,
    #[error("the JWT has no claim {0:?}, which this host needs")]
    Missing(String),
    #[error("the JWT's claim {0:?} has the wrong kind of value")]
    Kind(String),
    #[error(
        "the JWT's claim {0:?} cannot be a part of a key: it is empty, or contains what follows it in the pattern"
    )]
    NoPart(String),
    #[error("the JWT's claim {0:?} is not the name of a principal")]
    NoName(String),
    #[error(transparent)]
    Unproved(#[from] Unproved),
}

impl Refusal {
    /// The reason in metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::TooLong(_)
            | Self::NotCompact
            | Self::NotJson(_)
            | Self::Twice(_)
            | Self::TooDeep(_)
            | Self::Critical
            | Self::Type(_) => "malformed",
            Self::Algorithm(_) => "algorithm",
            Self::UnknownIssuer(_) => "issuer",
            Self::Audience => "audience",
            Self::NoKeys => "no-keys",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYet => "not-yet",
            Self::Missing(_) | Self::Kind(_) | Self::NoPart(_) | Self::NoName(_) => "claims",
            Self::Unproved(_) => "principal",
        }
    }
}

/// A name from a JWT, cut for a text.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(SHOWN_CHARS).collect()
}

impl Advised for Refusal {
    fn advice(&self) -> Advice {
        let hint = match self {
            Self::Unproved(error) => return error.advice(),
            Self::NoKeys => return Code::ProviderAway.advice(),
            Self::Expired => "get a new JWT from the identity provider",
            Self::NotYet => {
                "try again when it is valid, or set the clocks of the provider and of this host right"
            }
            Self::Signature | Self::UnknownKey => {
                "get a new JWT from the identity provider; if that one is refused too, the host's settings name the keys of another provider"
            }
            Self::UnknownIssuer(_) => {
                "get a JWT from a provider that this host knows: its setting `access.providers` lists them"
            }
            Self::Audience => "ask the identity provider for a JWT for the audience of this host",
            Self::Algorithm(_) => "let the identity provider sign with RS256, ES256 or EdDSA",
            Self::Missing(_) | Self::Kind(_) | Self::NoPart(_) | Self::NoName(_) => {
                "let the identity provider put the claim into its JWTs, as the host's setting `access.providers` expects it"
            }
            Self::TooLong(_) => "let the identity provider put fewer claims into its JWTs",
            Self::NotCompact
            | Self::NotJson(_)
            | Self::Twice(_)
            | Self::TooDeep(_)
            | Self::Critical
            | Self::Type(_) => "send a signed JWT as the identity provider issued it",
        };
        Code::CredentialsRefused.hint(hint)
    }
}
