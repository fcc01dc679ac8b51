//! `Content-Encoding`: a compressed body is decompressed on every route that takes one, within the route's own bound and the memory for
//! bodies. Unknown codings are refused with a list of the known ones.

use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::{Buf, Bytes, BytesMut};
use millrace_model::Coding;
use millrace_model::compression::InflateError;

use super::app::App;
use super::error::{ApiError, own};
use super::receiving::make_room;
use crate::net::Room;

/// Bytes that are decompressed at once; other requests run in between.
const PIECE_BYTES: usize = 64 << 10;

/// Our `Accept-Encoding`.
pub(super) const ACCEPTED: &str = "gzip, deflate, zstd, identity";

/// The body's coding; `None` is uncompressed.
pub(super) fn coding_of(headers: &HeaderMap) -> Result<Option<Coding>, ApiError> {
    let mut found = None;
    for value in headers.get_all(CONTENT_ENCODING) {
        let names = value.to_str().map_err(|_| unsupported("its value"))?;
        for name in names.split(',').map(str::trim) {
            if name.is_empty() || name.eq_ignore_ascii_case("identity") {
                continue;
            }
            let coding = Coding::from_name(name).ok_or_else(|| unsupported(name))?;
            if found.replace(coding).is_some() {
                return Err(unsupported("a list of codings"));
            }
        }
    }
    Ok(found)
}

fn unsupported(what: &str) -> ApiError {
    let what: String = what.chars().take(40).collect();
    let message = format!("Content-Encoding: {what} is not supported");
    let hint = format!("send the body uncompressed, or in one of these codings: {ACCEPTED}");
    ApiError::own(&own::UNSUPPORTED_ENCODING, message, hint).accepting(ACCEPTED)
}

impl App {
    /// The decompressed bytes of a body. Memory is reserved as they are produced.
    pub(super) async fn inflated(
        &self,
        coding: Coding,
        compressed: &Bytes,
        room: &mut Room,
        bytes_max: usize,
    ) -> Result<Bytes, ApiError> {
        let name = coding.name();
        let broken = |error| not_inflated(name, &error);
        let compressed_bytes = compressed.len();
        let mut inflating = coding
            .inflate(compressed.clone().reader())
            .map_err(broken)?;
        let mut plain = BytesMut::new();
        loop {
            let filled = plain.len();
            let total = compressed_bytes + filled + PIECE_BYTES;
            make_room(room, total).await?;
            plain.resize(filled + PIECE_BYTES, 0);
            let read = inflating.read(&mut plain[filled..]).map_err(broken)?;
            plain.truncate(filled + read);
            if plain.len() > bytes_max {
                return Err(inflates_too_far(name, bytes_max));
            }
            if read == 0 {
                return Ok(plain.freeze());
            }
            tokio::task::yield_now().await;
        }
    }
}

fn not_inflated(name: &str, error: &InflateError) -> ApiError {
    let message = format!("the body is not valid {name}, as Content-Encoding says: {error}");
    let hint = "compress the whole body with this coding, or omit the header";
    ApiError::malformed(message, hint)
}

fn inflates_too_far(name: &str, bytes_max: usize) -> ApiError {
    let message = format!("decompressed by {name}, the body is larger than {bytes_max} bytes");
    ApiError::too_large(
        message,
        "split it into several requests, or make it smaller",
    )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn coding(values: &[&'static str]) -> Result<Option<Coding>, ApiError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        coding_of(&headers)
    }

    #[test]
    fn one_coding_is_taken_under_its_names_and_what_is_not_known_is_refused() {
        for plain in [&[][..], &["identity"], &["", "Identity, identity"]] {
            assert_eq!(coding(plain).expect("plain"), None);
        }
        for gzip in [
            &["gzip"][..],
            &["X-GZIP"],
            &["identity, gzip"],
            &["gzip", ""],
        ] {
            assert_eq!(coding(gzip).expect("gzip"), Some(Coding::Gzip));
        }
        for name in ACCEPTED.split(", ").filter(|&name| name != "identity") {
            let known = Coding::from_name(name);
            assert!(known.is_some(), "{name} is said to be taken");
        }
        for unknown in [
            &["br"][..],
            &["gzip, gzip"],
            &["gzip", "zstd"],
            &["gzip;q=1"],
        ] {
            assert!(coding(unknown).is_err(), "{unknown:?}");
        }
    }
}
