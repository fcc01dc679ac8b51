//! Makes outside text harmless for people to read: characters that could move a terminal's cursor, change its colours, begin a new line
//! or reverse the order of the text around them are escaped.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character affects the display instead of being displayed: control characters, line and paragraph separators, direction
/// marks, and invisible marks.
#[must_use]
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text with each such character escaped, as in `
/// `, `\x1b` or `\u{202e}`; nothing else is changed.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            // Writing to a string does not fail.
            c if steers(c) && c.is_ascii() => drop(write!(shown, "\\x{:02x}", u32::from(c))),
            c if steers(c) => drop(write!(shown, "\\u{{{:x}}}", u32::from(c))),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_written_out_and_all_else_stays() {
        assert_eq!(
            plain("\u{1b}[2J\r\n\ta\u{7f}\u{9b}b\u{202e}c\u{2028}"),
            "\\x1b[2J\\r\\n\\ta\\x7f\\u{9b}b\\u{202e}c\\u{2028}"
        );
        for same in ["", "abc", "Zürich", "日本語", "مرحبا", "a\\b", "🦀"] {
            assert!(matches!(plain(same), Cow::Borrowed(text) if text == same));
        }
    }

    #[test]
    fn nothing_that_steers_is_left_of_any_character() {
        for c in char::MIN..=char::MAX {
            let text = c.to_string();
            let shown = plain(&text);
            assert!(!shown.contains(steers), "{c:?}");
            assert!(!shown.is_empty());
        }
    }
}
