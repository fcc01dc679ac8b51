//! Who a principal is to others than this host: a name in a client's certificate, or a user of the machine.
//!
//! An identity is one text that is compared exactly, such as `dns:billing.internal`. [`Identity`] parses and prints it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::advice::{Advice, Advised};
use crate::bounds::IDENTITY_BYTES_MAX;
use crate::codes::Code;

/// What says who somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdentityKind {
    /// A DNS name among the alternative names of a client's certificate (RFC 5280, section 4.2.1.6). It is kept in lower case.
    Dns,
    /// A URI among them, such as a SPIFFE ID.
    Uri,
    /// An e-mail address among them.
    Email,
    /// The common name of the certificate's subject.
    CommonName,
    /// The number of a user of the machine, at the host's Unix socket.
    User,
}

impl IdentityKind {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Dns,
        Self::Uri,
        Self::Email,
        Self::CommonName,
        Self::User,
    ];

    /// How identities of this kind begin, before the colon.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Uri => "uri",
            Self::Email => "email",
            Self::CommonName => "cn",
            Self::User => "uid",
        }
    }
}

impl fmt::Display for IdentityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who somebody is to others, as in `uri:spiffe://prod/billing`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    kind: IdentityKind,
    value: Arc<str>,
}

impl Identity {
    /// An identity of this kind.
    ///
    /// # Errors
    /// [`IdentityError`] if the value cannot be of this kind.
    pub fn new(kind: IdentityKind, value: &str) -> Result<Self, IdentityError> {
        if value.len() > IDENTITY_BYTES_MAX {
            return Err(IdentityError::TooLong);
        }
        if value.is_empty() || value.trim() != value || value.chars().any(char::is_control) {
            return Err(IdentityError::Value(kind));
        }
        let is_spelt_once = match kind {
            // Another spelling of the same number would be another text.
            IdentityKind::User => value
                .parse::<u32>()
                .is_ok_and(|uid| uid.to_string() == value),
            IdentityKind::Dns | IdentityKind::Uri | IdentityKind::Email => {
                value.chars().all(|c| c.is_ascii_graphic())
            }
            IdentityKind::CommonName => true,
        };
        if !is_spelt_once {
            return Err(IdentityError::Value(kind));
        }
        let value = match kind {
            IdentityKind::Dns => value.to_ascii_lowercase().into(),
            _ => value.into(),
        };
        Ok(Self { kind, value })
    }

    /// A user of the machine.
    #[must_use]
    pub fn of_user(uid: u32) -> Self {
        Self {
            kind: IdentityKind::User,
            value: uid.to_string().into(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It does not begin with a known kind.
    #[error(
        "{0:?} is no identity: write KIND:VALUE, where KIND is one of {kinds}",
        kinds = IdentityKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ")
    )]
    Kind(String),
    /// Its value cannot be one.
    #[error("what follows {0}: {needs}", needs = needs(*.0))]
    Value(IdentityKind),
    /// It is longer than the bound.
    #[error("an identity has at most {IDENTITY_BYTES_MAX} bytes")]
    TooLong,
}

const fn needs(kind: IdentityKind) -> &'static str {
    match kind {
        IdentityKind::User => "is the number of a user, as `id -u` prints it",
        IdentityKind::CommonName => {
            "is a name without control characters, and without spaces around it"
        }
        _ => "is ASCII text without spaces, as it is in the certificate",
    }
}

impl Advised for IdentityError {
    fn advice(&self) -> Advice {
        Code::BadIdentity.advice()
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        /// Of a text that is no identity, this much is shown.
        const SHOWN_CHARS: usize = 64;
        let unknown = || IdentityError::Kind(text.chars().take(SHOWN_CHARS).collect());
        let (kind, value) = text.split_once(':').ok_or_else(unknown)?;
        let mut kinds = IdentityKind::ALL.iter();
        let kind = kinds.find(|known| known.as_str() == kind);
        Self::new(*kind.ok_or_else(unknown)?, value)
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_identity_reads_as_it_is_written() {
        for text in [
            "dns:billing.internal",
            "uri:spiffe://prod/billing",
            "email:ops@example.com",
            "cn:Billing of München",
            "cn:a:b",
            "uid:1000",
        ] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
        let dns = "dns:Billing.Internal".parse::<Identity>().unwrap();
        assert_eq!(dns.to_string(), "dns:billing.internal");
        assert_eq!(Identity::of_user(0), "uid:0".parse().unwrap());
    }

    #[test]
    fn what_is_no_identity_is_refused_with_what_is_missing() {
        let refused = |text: &str| text.parse::<Identity>().unwrap_err().to_string();
        for text in ["", "billing", "ip:10.0.0.1", "DNS:a"] {
            assert!(refused(text).contains("dns, uri, email, cn, uid"), "{text}");
        }
        for text in [
            "uid:",
            "uid:-1",
            "uid:01",
            "uid:+1",
            "uid:4294967296",
            "uid:root",
        ] {
            assert!(refused(text).contains("id -u"), "{text}");
        }
        for text in [
            "dns:",
            "dns:a b",
            "uri:\u{fc}",
            "email: a",
            "cn: a",
            "cn:a\0",
        ] {
            assert!(refused(text).contains("what follows"), "{text}");
        }
        let long = format!("cn:{}", "x".repeat(IDENTITY_BYTES_MAX + 1));
        assert_eq!(long.parse::<Identity>(), Err(IdentityError::TooLong));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "(dns|uri|cn|uid|email|x)?:?\\PC{0,40}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
            }
        }
    }
}
