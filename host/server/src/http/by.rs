//! The caller's name: the header `Millrace-By`. A claim that is recorded with changes, not proof: anyone who can connect can claim any
//! name.

use axum::http::{HeaderMap, HeaderName};
use millrace_model::plain::steers;

use super::bounds::BY_BYTES_MAX;

/// The header's name.
const BY: HeaderName = HeaderName::from_static("millrace-by");

/// The name of a caller who gives none.
const UNKNOWN: &str = "unknown";

/// The header in the OpenAPI document.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "for the document only")]
pub(super) struct ByHeader {
    /// The caller's name, for the records.
    #[param(rename = "Millrace-By")]
    by: Option<String>,
}

/// The caller's name.
pub(super) fn by_of(headers: &HeaderMap) -> String {
    let claimed = headers.get(BY);
    claimed.map_or_else(|| UNKNOWN.to_owned(), |claimed| cleaned(claimed.as_bytes()))
}

fn cleaned(claimed: &[u8]) -> String {
    let text = String::from_utf8_lossy(claimed);
    let visible: String = text.chars().filter(|c| !steers(*c)).collect();
    let visible = visible.trim();
    let cut = visible[..visible.floor_char_boundary(BY_BYTES_MAX)].trim_end();
    match cut {
        "" => UNKNOWN.to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_cut_and_cleaned_and_never_empty() {
        assert_eq!(cleaned(b" ada "), "ada");
        assert_eq!(cleaned("Jos\u{e9}\u{1b}[2J".as_bytes()), "Jos\u{e9}[2J");
        assert_eq!(cleaned("a\u{202e}b".as_bytes()), "ab");
        assert_eq!(cleaned(b" \t "), "unknown");
        assert_eq!(cleaned(b""), "unknown");
        let long = "é".repeat(BY_BYTES_MAX);
        assert_eq!(cleaned(long.as_bytes()).len(), BY_BYTES_MAX);
        assert_eq!(cleaned(b"\xff"), "\u{fffd}");
    }
}
