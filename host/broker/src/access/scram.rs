//! The host's side of a SCRAM exchange (RFC 5802, 7677): three messages decide whether a client knows a password, and the fourth shows the
//! client that the host knows it too. The password itself is in none of them.
//!
//! Plain code: messages in, messages out; the nonce is handed in. Whether a user exists shows only when a proof is refused: whoever calls
//! gives a verifier that nobody's password has for users who do not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_model::{Advice, Advised, Code, ScramVerifier};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::access::verifying::{digest, hmac};

/// Bytes of one message of a client. A longer one is refused.
const SCRAM_MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Bytes of the host's part of the nonce, before they are written in base64.
const NONCE_BYTES: usize = 18;

/// Why an exchange ends without a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// It is no such message.
    #[error("this is no SCRAM message: {0}")]
    Malformed(&'static str),
    /// The client asks for an extension.
    #[error("the client asks for an extension of SCRAM, and the host has none")]
    Extension,
    /// The client binds the exchange to its TLS connection.
    #[error("the client binds the exchange to its channel, which the host does not offer")]
    ChannelBinding,
    /// The client repeats another beginning than it sent.
    #[error(
        "the client's messages differ in their channel binding: somebody may have changed one on the way"
    )]
    OtherBinding,
    /// The client wants to be somebody else than who it proves to be.
    #[error("the client wants to act for another principal than the one whose password it has")]
    OtherIdentity,
    /// No principal can have this name.
    #[error(
        "the user's name cannot be that of a principal: it has other characters than ASCII ones, or a = that stands for nothing"
    )]
    Name,
    /// The nonce is not that of the exchange.
    #[error("the nonce is not that of this exchange")]
    Nonce,
    /// No principal has this name and this password.
    #[error("no principal has this name and this password")]
    Proof,
    /// The password has changed meanwhile.
    #[error("the password, or what its principal may do, has changed during the exchange")]
    Changed,
}

impl ScramError {
    /// The host's last message, which says why.
    #[must_use]
    pub fn message(&self) -> String {
        let value = match self {
            Self::Malformed(_) => "invalid-encoding",
            Self::Extension => "extensions-not-supported",
            Self::ChannelBinding => "channel-binding-not-supported",
            Self::OtherBinding => "channel-bindings-dont-match",
            Self::Name => "invalid-username-encoding",
            Self::Proof => "invalid-proof",
            Self::OtherIdentity | Self::Nonce | Self::Changed => "other-error",
        };
        format!("e={value}")
    }
}

impl Advised for ScramError {
    fn advice(&self) -> Advice {
        match self {
            Self::Proof => Code::CredentialsRefused
                .hint("ask for a new password: `millrace access password set` makes one"),
            Self::Changed => Code::CredentialsRefused.hint("log in again"),
            Self::ChannelBinding | Self::Extension => {
                Code::Malformed.hint("let the client use the mechanism without additions")
            }
            Self::OtherIdentity => {
                Code::Malformed.hint("leave the authorization identity empty, or log in as it")
            }
            Self::Malformed(_) | Self::OtherBinding | Self::Name | Self::Nonce => {
                Code::Malformed.advice()
            }
        }
    }
}

/// The host's part of a nonce: random, and of characters that it may have.
///
/// # Errors
/// [`getrandom::Error`] if the system has no random numbers.
pub fn scram_nonce() -> Result<String, getrandom::Error> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(STANDARD.encode(bytes))
}

/// A client's first message.
#[derive(Debug)]
pub(super) struct ClientFirst {
    /// What says whether the exchange is bound to its channel.
    header: String,
    /// The rest, which is signed.
    bare: String,
    name: String,
    nonce: String,
}

impl ClientFirst {
    pub(super) fn read(message: &[u8]) -> Result<Self, ScramError> {
        let malformed = ScramError::Malformed;
        let text = text_of(message)?;
        let (binding, rest) = text
            .split_once(',')
            .ok_or_else(|| malformed("it has no header of GSS-API"))?;
        let (identity, bare) = rest
            .split_once(',')
            .ok_or_else(|| malformed("it has no header of GSS-API"))?;
        match binding {
            // The client binds nothing, or would have if the host had offered it, which it does not.
            "n" | "y" => {}
            binding if binding.starts_with("p=") => return Err(ScramError::ChannelBinding),
            _ => return Err(malformed("its channel binding is none of n, y and p=")),
        }
        let mut attributes = bare.split(',');
        let name = match attributes.next() {
            Some(first) if first.starts_with("m=") => return Err(ScramError::Extension),
            Some(first) => first
                .strip_prefix("n=")
                .ok_or_else(|| malformed("it names no user"))?,
            None => return Err(malformed("it names no user")),
        };
        let name = name_of(name)?;
        let nonce = attributes
            .next()
            .and_then(|second| second.strip_prefix("r="));
        let nonce = nonce.filter(|nonce| is_nonce(nonce));
        let nonce = nonce
            .ok_or_else(|| malformed("it has no nonce"))?
            .to_owned();
        // Extensions that nobody must know follow.
        let identity = match identity {
            "" => None,
            given => Some(
                given
                    .strip_prefix("a=")
                    .ok_or_else(|| malformed("its header has something else than an identity"))?,
            ),
        };
        if let Some(identity) = identity
            && name_of(identity)? != name
        {
            return Err(ScramError::OtherIdentity);
        }
        Ok(Self {
            header: text[..text.len() - bare.len()].to_owned(),
            bare: bare.to_owned(),
            name,
            nonce,
        })
    }

    /// Whom the client says to be.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Asks the client to prove it. `nonce` must be fresh, and hard to guess.
    pub(super) fn challenge(self, verifier: ScramVerifier, nonce: &str) -> Exchange {
        let nonce = format!("{}{nonce}", self.nonce);
        let salt = STANDARD.encode(&verifier.salt);
        let message = format!("r={nonce},s={salt},i={}", verifier.iterations);
        Exchange {
            header: self.header,
            begin: self.bare,
            verifier,
            nonce,
            message,
        }
    }
}

/// An exchange that waits for the client's proof.
#[derive(Debug)]
pub(super) struct Exchange {
    header: String,
    begin: String,
    verifier: ScramVerifier,
    nonce: String,
    message: String,
}

impl Exchange {
    /// The host's first message.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Checks the client's last message, and returns the host's.
    pub(super) fn finish(&self, message: &[u8]) -> Result<String, ScramError> {
        let malformed = ScramError::Malformed;
        let text = text_of(message)?;
        let (signed, proof) = text
            .rsplit_once(",p=")
            .ok_or_else(|| malformed("it has no proof"))?;
        let mut attributes = signed.split(',');
        let binding = attributes.next().and_then(|first| first.strip_prefix("c="));
        let binding = binding.ok_or_else(|| malformed("it has no channel binding"))?;
        let nonce = attributes
            .next()
            .and_then(|second| second.strip_prefix("r="));
        let nonce = nonce.ok_or_else(|| malformed("it has no nonce"))?;
        // Extensions that nobody must know follow.
        let binding = STANDARD.decode(binding);
        let binding = binding.map_err(|_| malformed("its channel binding is not base64"))?;
        let proof = STANDARD.decode(proof).map(Zeroizing::new);
        let proof = proof.map_err(|_| malformed("its proof is not base64"))?;
        if binding != self.header.as_bytes() {
            return Err(ScramError::OtherBinding);
        }
        if nonce != self.nonce {
            return Err(ScramError::Nonce);
        }
        let signed = [
            self.begin.as_bytes(),
            b",",
            self.message.as_bytes(),
            b",",
            signed.as_bytes(),
        ];
        let ScramVerifier {
            hash,
            stored_key,
            server_key,
            ..
        } = &self.verifier;
        let signature = hmac(*hash, stored_key, &signed);
        if proof.len() != signature.len() {
            return Err(ScramError::Proof);
        }
        let both = proof.iter().zip(&signature);
        let client_key: Zeroizing<Vec<u8>> = Zeroizing::new(both.map(|(a, b)| a ^ b).collect());
        if !bool::from(digest(*hash, &client_key).ct_eq(stored_key)) {
            return Err(ScramError::Proof);
        }
        let signature = hmac(*hash, server_key, &signed);
        Ok(format!("v={}", STANDARD.encode(signature)))
    }
}

fn text_of(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > SCRAM_MESSAGE_BYTES_MAX {
        return Err(ScramError::Malformed("it is longer than 4096 bytes"));
    }
    let text = str::from_utf8(message);
    text.map_err(|_| ScramError::Malformed("it is not UTF-8"))
}

/// A name as the message has it, in which `=2C` is a comma and `=3D` an equals sign. Names of principals are ASCII, which SASLprep (RFC
/// 4013) leaves as it is; others are refused, because two forms of one name must not be two principals.
fn name_of(escaped: &str) -> Result<String, ScramError> {
    let is_visible = escaped
        .bytes()
        .all(|byte| byte.is_ascii_graphic() || byte == b' ');
    let mut parts = escaped.split('=');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (character, rest) = match part.split_at_checked(2) {
            Some(("2C", rest)) => (',', rest),
            Some(("3D", rest)) => ('=', rest),
            _ => return Err(ScramError::Name),
        };
        name.push(character);
        name.push_str(rest);
    }
    (is_visible && !name.is_empty())
        .then_some(name)
        .ok_or(ScramError::Name)
}

fn is_nonce(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b',')
}

#[cfg(test)]
mod tests;
