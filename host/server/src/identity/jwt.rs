//! A JWT in its compact form (RFC 7515 section 3.1), taken apart. Nothing in it is known to be true.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::bounds::JWT_BYTES_MAX;
use super::claims::Claims;
use super::refusal::{Refusal, shown};

/// What was signed, by whom according to itself, and the signature.
pub(super) struct Jwt<'a> {
    pub(super) header: Claims,
    pub(super) claims: Claims,
    pub(super) signed: &'a [u8],
    pub(super) signature: Vec<u8>,
}

/// Whether a credential has the form of a JWT, and not that of another token.
pub(super) fn is_one(presented: &str) -> bool {
    let mut parts = presented.split('.');
    // A JSON object in base64url begins so: `{"`, or `{` and white space.
    let begins = parts.next().is_some_and(|first| first.starts_with('e'));
    begins && parts.count() == 2
}

/// Whether a lenient reader may take a credential for a JWT: it, or a word of it, has three parts, or it is not ASCII.
pub(super) fn may_be_one(presented: &str) -> bool {
    let has_three = |text: &str| text.split('.').count() == 3;
    let is_between = |letter: char| letter.is_whitespace() || letter == ',';
    !presented.is_ascii() || has_three(presented) || presented.split(is_between).any(has_three)
}

/// The JWT that is for this host on the path of a route, where `is_known` says of which issuers it takes JWTs. `None` if it is the
/// component's: no JWT, or one of another issuer.
///
/// # Errors
/// [`Refusal`]: what may be a JWT and cannot be read strictly may say something else to the component than it says here, so that it would
/// pass for one that this host has checked.
pub(super) fn of_route(
    presented: &str,
    is_known: impl Fn(&str) -> bool,
) -> Result<Option<Jwt<'_>>, Refusal> {
    if !may_be_one(presented) {
        return Ok(None);
    }
    let jwt = Jwt::read(presented)?;
    let is_ours = is_known(jwt.claims.text("iss")?);
    Ok(is_ours.then_some(jwt))
}

impl<'a> Jwt<'a> {
    pub(super) fn read(presented: &'a str) -> Result<Self, Refusal> {
        if presented.len() > JWT_BYTES_MAX {
            return Err(Refusal::TooLong(presented.len()));
        }
        let (signed, signature) = presented.rsplit_once('.').ok_or(Refusal::NotCompact)?;
        let (header, claims) = signed.split_once('.').ok_or(Refusal::NotCompact)?;
        // Strict: another spelling of the same bytes would be another JWT to whoever remembers them.
        let decoded = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| Refusal::NotCompact)
        };
        Ok(Self {
            header: Claims::read(&decoded(header)?, "header")?,
            claims: Claims::read(&decoded(claims)?, "payload")?,
            signed: signed.as_bytes(),
            signature: decoded(signature)?,
        })
    }

    /// Checks what is in the header besides algorithm and key.
    pub(super) fn check_header(&self) -> Result<(), Refusal> {
        if self.header.at("crit").is_some() {
            return Err(Refusal::Critical);
        }
        let Some(kind) = self.header.maybe_text("typ")? else {
            return Ok(());
        };
        let kind = kind.to_ascii_lowercase();
        // RFC 7515 section 4.1.9: `application/` may be left out.
        match kind.strip_prefix("application/").unwrap_or(&kind) {
            "jwt" | "at+jwt" => Ok(()),
            _ => Err(Refusal::Type(shown(&kind))),
        }
    }
}

#[cfg(test)]
mod tests;
