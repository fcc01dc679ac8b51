//! A principal: a person or a program that calls the host, its rules, and what it proves itself with.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::access::Rule;
use crate::clock::Timestamp;
use crate::identity::Identity;
use crate::name::{PrincipalName, TokenName};
use crate::password::Password;
use crate::quotas::Quotas;

/// A principal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Its name.
    pub name: PrincipalName,
    /// What it may do; nothing without rules.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Its tokens, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Token>,
    /// How much it may send, read and ask for.
    #[serde(default, skip_serializing_if = "Quotas::is_empty")]
    pub quotas: Quotas,
    /// Its password, for clients whose protocol knows only users and passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Password>,
    /// Who it is to others than this host, in the order in which they were added. An identity belongs to one principal at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<Identity>,
    /// When it was made.
    pub made_at: Timestamp,
    /// Who made it.
    pub made_by: String,
}

/// A token as it is stored: its secret is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its public part, by which it is found. Random.
    pub id: String,
    /// Its name, for people.
    pub name: TokenName,
    /// What its secret is checked against.
    pub hash: TokenHash,
    /// If present, it may do only what both one of these and one of its principal's rules allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Vec<Rule>>,
    /// It is refused from this time on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was made.
    pub made_at: Timestamp,
    /// Who made it.
    pub made_by: String,
}

impl Token {
    /// Whether it is refused because of its age.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// The SHA-256 of a secret of 256 random bits. Nothing slower is needed: such a secret cannot be guessed from it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash(pub [u8; 32]);

/// Never printed, so that no log has it.
impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}
