//! `Idempotency-Key`: a repeated call takes effect once and gets the first answer. After the IETF draft "The Idempotency-Key HTTP
//! Header Field" (draft-ietf-httpapi-idempotency-key-header).
//!
//! The draft requires a quoted string, and many clients send the bare token: both are accepted and mean the same key. A repeat during
//! the first call waits for it and gets its answer, where the draft would refuse it.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use millrace_broker::CallKey;
use millrace_model::bounds::IDEMPOTENCY_KEY_CHARS_MAX;
use sha2::{Digest, Sha256};

use super::error::{ApiError, own};

const KEY: &str = "idempotency-key";
/// Marks an answer as that of an earlier call.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The request's key, as a digest.
pub(super) fn key_of(headers: &HeaderMap) -> Result<Option<[u8; 16]>, ApiError> {
    let mut given = headers.get_all(KEY).iter();
    let Some(value) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err(bad_key("there is more than one"));
    }
    let key = understood(value).map_err(bad_key)?;
    Ok(Some(digest(&[&key])))
}

/// A digest of everything that a call asks for, part by part.
pub(super) fn call(key: [u8; 16], parts: &[impl AsRef<[u8]>]) -> CallKey {
    let fingerprint = digest(parts);
    CallKey { key, fingerprint }
}

fn digest(parts: &[impl AsRef<[u8]>]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    std::array::from_fn(|index| hash[index])
}

fn understood(value: &HeaderValue) -> Result<Vec<u8>, &'static str> {
    let text = value.as_bytes().trim_ascii();
    let key = match text {
        [b'"', inner @ .., b'"'] => unquoted(inner)?,
        [b'"', ..] => return Err("the quotes do not match"),
        bare => bare.to_vec(),
    };
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_CHARS_MAX {
        return Err("it is empty or too long");
    }
    if !key.iter().all(u8::is_ascii_graphic) {
        return Err("it contains characters other than visible ASCII");
    }
    Ok(key)
}

/// A string of structured fields (RFC 9651): a backslash escapes a quote or a backslash.
fn unquoted(inner: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut key = Vec::with_capacity(inner.len());
    let mut rest = inner.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'"' => return Err("the quotes do not match"),
            b'\\' => match rest.next() {
                Some(&escaped @ (b'"' | b'\\')) => key.push(escaped),
                _ => return Err("a backslash is not followed by a quote or a backslash"),
            },
            byte => key.push(byte),
        }
    }
    Ok(key)
}

fn bad_key(what: &str) -> ApiError {
    let message = format!("the header Idempotency-Key is invalid: {what}");
    let hint = format!(
        "send one key of 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters, such as a UUID, preferably in quotes"
    );
    ApiError::own(&own::BAD_IDEMPOTENCY_KEY, message, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &str) -> Result<Option<[u8; 16]>, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(KEY, value.parse().expect("a header's value"));
        key_of(&headers)
    }

    #[test]
    fn a_key_is_the_same_with_and_without_quotes() {
        let uuid = "8e03978e-40d5-43dd-bc93-6894a57f9324";
        let bare = key(uuid).expect("a key");
        assert!(bare.is_some());
        assert_eq!(key(&format!("\"{uuid}\"")).expect("a key"), bare);
        assert_ne!(key("another").expect("a key"), bare);
        assert_eq!(
            key(r#""a\"b\\c""#).expect("a key"),
            key(r#"a"b\c"#).expect("a key")
        );
        assert!(key_of(&HeaderMap::new()).expect("none").is_none());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = "x".repeat(IDEMPOTENCY_KEY_CHARS_MAX + 1);
        for bad in [
            "", "\"\"", "\"a", "\"", "a b", r#""a\b""#, r#""a"b""#, &long,
        ] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
        let mut twice = HeaderMap::new();
        twice.append(KEY, HeaderValue::from_static("a"));
        twice.append(KEY, HeaderValue::from_static("a"));
        assert!(key_of(&twice).is_err());
    }

    #[test]
    fn a_fingerprint_tells_where_one_part_ends() {
        let of = |parts: &[&[u8]]| call([0; 16], parts).fingerprint;
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"a", b""]), of(&[b"a"]));
    }
}
