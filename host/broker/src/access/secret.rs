//! Secrets as their holders have them. A token is `mr_`, ten letters by which it is found, `_`, and the secret; a password is what
//! somebody has chosen, or random characters.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use millrace_model::TokenHash;
use millrace_model::bounds::{PASSWORD_CHARS_LEAST, PASSWORD_CHARS_MAX};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::access::error::PrincipalError;

/// Every token begins so, so that a search for leaked ones finds them.
const BEGINNING: &str = "mr_";
const ID_CHARS: usize = 10;
const ID_ALPHABET: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz2345678";
const SECRET_BYTES: usize = 32;
/// Characters of the secret: 32 bytes in base64 without padding.
const SECRET_CHARS: usize = 43;

/// A token's text. It is shown once, to whoever made it, and cannot be printed by accident.
#[derive(Clone)]
pub struct TokenText(Zeroizing<String>);

impl TokenText {
    /// A new token.
    ///
    /// # Errors
    /// [`getrandom::Error`] if the system has no random numbers.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES + ID_CHARS]);
        getrandom::fill(&mut *bytes)?;
        let (secret, id) = bytes.split_at(SECRET_BYTES);
        let letter = |byte: &u8| char::from(ID_ALPHABET[usize::from(*byte) % ID_ALPHABET.len()]);
        let id: String = id.iter().map(letter).collect();
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret));
        Ok(Self(Zeroizing::new(format!("{BEGINNING}{id}_{}", *secret))))
    }

    /// The text, for its one answer.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(super) fn id(&self) -> &str {
        &self.0[BEGINNING.len()..BEGINNING.len() + ID_CHARS]
    }

    pub(super) fn hash(&self) -> TokenHash {
        hash_of(&self.0[self.0.len() - SECRET_CHARS..])
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(…)")
    }
}

/// Bytes of a password that the host makes: 32 characters.
const PASSWORD_BYTES: usize = 24;

/// A password's text. It cannot be printed by accident.
#[derive(Clone)]
pub struct PasswordText(Zeroizing<String>);

impl PasswordText {
    /// A new password.
    ///
    /// # Errors
    /// [`getrandom::Error`] if the system has no random numbers.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; PASSWORD_BYTES]);
        getrandom::fill(&mut *bytes)?;
        Ok(Self(Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes))))
    }

    /// One that somebody has chosen.
    ///
    /// # Errors
    /// [`PrincipalError::BadPassword`]. Only visible ASCII characters are taken: all clients turn them into the same bytes, with and without
    /// SASLprep (RFC 4013).
    pub fn chosen(text: String) -> Result<Self, PrincipalError> {
        let text = Zeroizing::new(text);
        let refused = |why| Err(PrincipalError::BadPassword(why));
        match text.len() {
            _ if !can_be_password(&text) && text.len() <= PASSWORD_CHARS_MAX => {
                refused("it has other characters than visible ASCII ones")
            }
            ..PASSWORD_CHARS_LEAST => refused("it has less than 12 characters"),
            PASSWORD_CHARS_LEAST..=PASSWORD_CHARS_MAX => Ok(Self(text)),
            _ => refused("it has more than 128 characters"),
        }
    }

    /// The text, for its one answer.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordText(…)")
    }
}

/// Whether a text can be somebody's password, by its length and its characters.
pub(super) fn can_be_password(text: &str) -> bool {
    text.len() <= PASSWORD_CHARS_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The two parts of a token as somebody presents it: what it is found by, and the secret. `None` if it cannot be a token.
pub(super) fn parts(presented: &str) -> Option<(&str, &str)> {
    let rest = presented.strip_prefix(BEGINNING)?;
    let (id, secret) = rest.split_at_checked(ID_CHARS)?;
    let secret = secret.strip_prefix('_')?;
    (secret.len() == SECRET_CHARS).then_some((id, secret))
}

/// Whether a presented secret is the one with this hash. It takes as long for any secret.
pub(super) fn is_of(secret: &str, hash: &TokenHash) -> bool {
    hash_of(secret).0.ct_eq(&hash.0).into()
}

fn hash_of(secret: &str) -> TokenHash {
    TokenHash(Sha256::digest(secret.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_proves_itself_and_no_other() {
        let [one, other] = [(); 2].map(|()| TokenText::random().unwrap());
        let (id, secret) = parts(one.reveal()).unwrap();
        assert_eq!(id, one.id());
        assert!(is_of(secret, &one.hash()) && !is_of(secret, &other.hash()));
    }

    #[test]
    fn what_cannot_be_a_token_has_no_parts() {
        let token = TokenText::random().unwrap();
        let whole = token.reveal();
        for cut in 0..whole.len() {
            assert_eq!(parts(&whole[..cut]), None);
        }
        assert_eq!(parts(&format!("{whole}x")), None);
        assert_eq!(parts("mr_ééééé_"), None);
    }

    #[test]
    fn a_chosen_password_is_long_enough_and_of_characters_that_every_client_can_send() {
        let least = "a".repeat(PASSWORD_CHARS_LEAST);
        let most = "~".repeat(PASSWORD_CHARS_MAX);
        for fine in [&least, &most] {
            assert_eq!(PasswordText::chosen(fine.clone()).unwrap().reveal(), fine);
        }
        for bad in [
            &least[1..],
            &format!("{most}~"),
            "müllers mühle",
            "a password of words",
        ] {
            let refused = PasswordText::chosen(bad.to_owned());
            assert!(
                matches!(refused, Err(PrincipalError::BadPassword(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_made_password_can_be_chosen_and_is_not_printed() {
        let [one, other] = [(); 2].map(|()| PasswordText::random().unwrap());
        assert_ne!(one.reveal(), other.reveal());
        assert!(PasswordText::chosen(one.reveal().to_owned()).is_ok());
        assert_eq!(format!("{one:?}"), "PasswordText(…)");
    }

    #[test]
    fn a_token_is_not_printed() {
        let token = TokenText::random().unwrap();
        let printed = format!("{token:?} {:?}", token.hash());
        assert_eq!(printed, "TokenText(…) TokenHash(…)");
    }
}
