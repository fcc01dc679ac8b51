//! "Did you mean …?": suggests the nearest right name for a wrong one, for fields, keys and options.

/// Below this similarity (0 to 1) a suggestion would confuse more than help.
const LIKENESS_MIN: f64 = 0.6;

/// The candidate most like `wrong`, if any is similar.
pub(crate) fn nearest<'a>(
    wrong: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(wrong, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// A hint for serde's message about an unknown field or variant, which lists the known ones in backticks.
pub(crate) fn hint_of(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !(message.contains("unknown field") || message.contains("unknown variant")) {
        return None;
    }
    let wrong = quoted.next()?;
    let known: Vec<&str> = quoted.collect();
    if let Some(right) = nearest(wrong, known.iter().copied()) {
        return Some(format!("did you mean `{right}`?"));
    }
    (!known.is_empty()).then(|| format!("use one of {}", known.join(", ")))
}

/// Messages of libraries, and their meaning for the author of a request.
const MEANT: [(&str, &str); 4] = [
    ("Failed to deserialize query string", "the query is invalid"),
    (
        "invalid digit found in string",
        "a whole number is expected",
    ),
    (
        "cannot parse integer from empty string",
        "a whole number is expected, not nothing",
    ),
    (
        "number too large to fit in target type",
        "the number is too large",
    ),
];

/// A library's message in plain words: `expected u32` means nothing to someone who writes TOML, JSON or a query.
pub(crate) fn in_plain_words(message: &str) -> String {
    let meant = |text: String, (said, meant): &(&str, &str)| text.replace(said, meant);
    number_in_words(&MEANT.iter().fold(message.to_owned(), meant))
}

/// Replaces the names of Rust's number types.
fn number_in_words(message: &str) -> String {
    let plain = |word: &str| match word.trim_end_matches([',', ';', '.']) {
        "u8" | "u16" | "u32" | "u64" | "usize" => Some("a whole number, not negative"),
        "i8" | "i16" | "i32" | "i64" | "isize" => Some("a whole number"),
        "f32" | "f64" => Some("a number"),
        _ => None,
    };
    let Some((said, expected)) = message.split_once(", expected ") else {
        return message.to_owned();
    };
    let word = expected.split(' ').next().unwrap_or_default();
    let Some(words) = plain(word) else {
        return message.to_owned();
    };
    let bare = word.trim_end_matches([',', ';', '.']);
    let rest = expected.strip_prefix(bare).unwrap_or_default();
    format!("{said}, expected {words}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_numbers_are_said_in_words() {
        let said = in_plain_words("invalid type: string \"x\", expected u32 at line 1 column 9");
        let plain =
            "invalid type: string \"x\", expected a whole number, not negative at line 1 column 9";
        assert_eq!(said, plain);
        let said = in_plain_words("invalid value: integer `-1`, expected usize");
        assert_eq!(
            said,
            "invalid value: integer `-1`, expected a whole number, not negative"
        );
        let said = in_plain_words(
            "Failed to deserialize query string: max: invalid digit found in string",
        );
        let plain = "the query is invalid: max: a whole number is expected";
        assert_eq!(said, plain);
        let other = "invalid type: integer `1`, expected a string";
        assert_eq!(in_plain_words(other), other);
    }

    #[test]
    fn a_slip_of_the_finger_is_answered_with_the_right_name() {
        let message = "unknown field `modle`, expected one of `topics`, `module`, `output`";
        assert_eq!(hint_of(message).as_deref(), Some("did you mean `module`?"));
    }

    #[test]
    fn a_name_like_none_is_answered_with_all_of_them() {
        let hint = hint_of("unknown field `zzz`, expected `all` or `dead_letters`");
        assert_eq!(hint.as_deref(), Some("use one of all, dead_letters"));
        assert_eq!(hint_of("invalid type: string, expected u32"), None);
    }
}
