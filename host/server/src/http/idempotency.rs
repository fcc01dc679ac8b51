//! `Idempotency-Key`: a call that is made again takes effect once and is answered as it was the first time. After the IETF draft
//! "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
//!
//! The draft wants a string in quotes, and many clients send the bare token: both are taken, and mean the same key. A call that
//! comes while the first one is still under way waits for it and gets its answer, where the draft would have it refused.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use millrace_broker::CallKey;
use millrace_model::bounds::IDEMPOTENCY_KEY_CHARS_MAX;
use sha2::{Digest, Sha256};

use super::error::ApiError;

const KEY: &str = "idempotency-key";
/// Says of an answer that it is the one of an earlier call.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The key that a request carries, by its digest.
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

/// What a call asks for, by its digest: all parts that say it, in order.
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
        return Err("it holds something other than visible ASCII");
    }
    Ok(key)
}

/// A string of structured fields (RFC 9651): a backslash stands before a quote or a backslash.
fn unquoted(inner: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut key = Vec::with_capacity(inner.len());
    let mut rest = inner.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'"' => return Err("the quotes do not match"),
            b'\\' => match rest.next() {
                Some(&escaped @ (b'"' | b'\\')) => key.push(escaped),
                _ => return Err("a backslash stands before neither a quote nor a backslash"),
            },
            byte => key.push(byte),
        }
    }
    Ok(key)
}

fn bad_key(what: &str) -> ApiError {
    let message = format!("the header Idempotency-Key is not understood: {what}");
    let hint = format!(
        "send one key of 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters, such as a UUID, best in quotes"
    );
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "bad-idempotency-key",
        message,
        hint,
    )
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
