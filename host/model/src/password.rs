//! A password as it is stored: enough to check it, and not enough to send it. Whoever reads it must guess the password, at the price of a
//! derivation for each guess.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// A password of a principal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Password {
    /// What it is checked against, one for each hash.
    pub verifiers: Vec<ScramVerifier>,
    /// When it was set.
    pub set_at: Timestamp,
    /// Who set it.
    pub set_by: String,
}

impl Password {
    /// What it is checked against with this hash.
    #[must_use]
    pub fn verifier(&self, hash: ScramHash) -> Option<&ScramVerifier> {
        self.verifiers.iter().find(|known| known.hash == hash)
    }
}

/// The hash of a SCRAM mechanism (RFC 5802, 7677).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScramHash {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl ScramHash {
    /// All hashes.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name of the SASL mechanism.
    #[must_use]
    pub const fn mechanism(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    /// Bytes of its values.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// What a password is checked against. Stored as RFC 5803 writes it: `SCRAM-SHA-256$4096:SALT$STORED-KEY:SERVER-KEY`, the three in base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScramVerifier {
    /// The hash.
    pub hash: ScramHash,
    /// How often it is applied to derive a key from the password; at least 1.
    pub iterations: u32,
    /// What is mixed into the password, random for each.
    pub salt: Vec<u8>,
    /// The hash of the key that a client proves to have.
    pub stored_key: Vec<u8>,
    /// The key with which the host proves that it knows this verifier.
    pub server_key: Vec<u8>,
}

/// A text is no verifier. It does not say the text, which may be one nearly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stored form of a password cannot be read; it is MECHANISM$ITERATIONS:SALT$STORED-KEY:SERVER-KEY"
)]
pub struct NotAVerifier;

impl FromStr for ScramVerifier {
    type Err = NotAVerifier;

    fn from_str(text: &str) -> Result<Self, NotAVerifier> {
        let mut parts = text.split('$');
        let (Some(mechanism), Some(derived), Some(keys), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAVerifier);
        };
        let mut hashes = ScramHash::ALL.into_iter();
        let hash = hashes.find(|hash| hash.mechanism() == mechanism);
        let hash = hash.ok_or(NotAVerifier)?;
        let (iterations, salt) = derived.split_once(':').ok_or(NotAVerifier)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(NotAVerifier)?;
        let bytes = |text| STANDARD.decode(text).map_err(|_| NotAVerifier);
        let key = |text| {
            bytes(text).and_then(|key| match key.len() == hash.bytes() {
                true => Ok(key),
                false => Err(NotAVerifier),
            })
        };
        let iterations = iterations.parse().ok().filter(|times| *times > 0);
        Ok(Self {
            hash,
            iterations: iterations.ok_or(NotAVerifier)?,
            salt: bytes(salt)?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }
}

impl TryFrom<String> for ScramVerifier {
    type Error = NotAVerifier;

    fn try_from(text: String) -> Result<Self, NotAVerifier> {
        text.parse()
    }
}

impl From<ScramVerifier> for String {
    fn from(verifier: ScramVerifier) -> Self {
        let ScramVerifier {
            hash,
            iterations,
            salt,
            stored_key,
            server_key,
        } = verifier;
        let [salt, stored_key, server_key] =
            [salt, stored_key, server_key].map(|bytes| STANDARD.encode(bytes));
        let mechanism = hash.mechanism();
        format!("{mechanism}${iterations}:{salt}${stored_key}:{server_key}")
    }
}

/// Never printed, so that no log has what passwords can be guessed against.
impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScramVerifier({}, …)", self.hash.mechanism())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_verifier() -> impl Strategy<Value = ScramVerifier> {
        let hash = prop::sample::select(&ScramHash::ALL[..]);
        let all = hash.prop_flat_map(|hash| {
            let key = || prop::collection::vec(any::<u8>(), hash.bytes());
            let salt = prop::collection::vec(any::<u8>(), 0..40);
            (Just(hash), 1..=u32::MAX, salt, key(), key())
        });
        all.prop_map(
            |(hash, iterations, salt, stored_key, server_key)| ScramVerifier {
                hash,
                iterations,
                salt,
                stored_key,
                server_key,
            },
        )
    }

    proptest! {
        #[test]
        fn a_verifier_is_read_as_it_was_written_and_no_part_of_it_is_one(verifier in any_verifier(), cut in any::<prop::sample::Index>()) {
            let text = String::from(verifier.clone());
            prop_assert_eq!(text.parse::<ScramVerifier>(), Ok(verifier.clone()));
            let printed = format!("{verifier:?}");
            prop_assert!(!printed.contains(&STANDARD.encode(&verifier.stored_key)));
            let cut = &text[..cut.index(text.len())];
            prop_assert_eq!(cut.parse::<ScramVerifier>(), Err(NotAVerifier));
        }
    }

    #[test]
    fn a_verifier_as_rfc_5803_writes_it_is_read() {
        // That of RFC 7677: user, pencil.
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let verifier: ScramVerifier = text.parse().expect("a verifier");
        assert_eq!(verifier.iterations, 4_096);
        assert_eq!(verifier.stored_key.len(), verifier.hash.bytes());
        assert_eq!(String::from(verifier), text);
    }
}
