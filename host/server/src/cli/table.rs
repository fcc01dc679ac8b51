//! Tables for people.

use std::borrow::Cow;

use comfy_table::{ContentArrangement, Table, presets};
use millrace_model::calendar::date;
use millrace_model::plain::{plain, steers};
use serde_json::Value;

/// A table with a heading, or only the note if there are no rows.
pub(super) fn table(headings: &[&str], rows: Vec<Vec<String>>, note_if_empty: &str) -> String {
    if rows.is_empty() {
        return note_if_empty.to_owned();
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(headings.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| harmless(cell)).collect::<Vec<_>>());
    }
    trimmed(&table.to_string())
}

/// Names and values, one pair per line.
pub(super) fn facts(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let next_line = format!("\n{:width$}  ", "");
    let line = |(name, value): &(&str, String)| {
        let value = harmless(value).replace('\n', &next_line);
        format!("{name:width$}  {value}")
    };
    let lines: Vec<String> = pairs.iter().map(line).collect();
    lines.join("\n")
}

fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// The text with the control characters in each line escaped. The line ends are ours: outside texts have passed [`cell`] or [`plain`]
/// before, which leave none.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    match text.contains(|c| c != '\n' && steers(c)) {
        false => Cow::Borrowed(text),
        true => Cow::Owned(text.split('\n').map(plain).collect::<Vec<_>>().join("\n")),
    }
}

/// JSON for a terminal: the same value, with control characters as JSON escapes.
pub(super) fn harmless_json(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(steers) {
        return text;
    }
    let mut shown = String::with_capacity(text.len() + 16);
    // Outside of strings, JSON on one line has no control characters.
    for c in text.chars() {
        match steers(c) {
            false => shown.push(c),
            true => c
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| shown.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    shown
}

/// A JSON value for people, on one line: strings without quotes, null as a dash, lists with commas.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => told_apart(&plain(text)).into_owned(),
        Value::Array(items) if items.is_empty() => NOTHING.to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => plain(&other.to_string()).into_owned(),
    }
}

/// The text for null.
const NOTHING: &str = "-";

/// Quotes a text that would look like null, and one that looks like such a quoted text.
pub(super) fn told_apart(text: &str) -> Cow<'_, str> {
    match text.trim_matches('"') == NOTHING {
        true => Cow::Owned(format!("\"{text}\"")),
        false => Cow::Borrowed(text),
    }
}

/// A text of several lines, such as a backtrace.
pub(super) fn lines(value: &Value) -> String {
    match value.as_str() {
        Some(text) => harmless(text).into_owned(),
        None => cell(value),
    }
}

/// Milliseconds since the Unix epoch as a UTC date and time.
pub(super) fn when(ms: &Value) -> String {
    let Some(ms) = ms.as_u64() else {
        return cell(ms);
    };
    let (days, ms_of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (seconds, ms) = (ms_of_day / 1_000, ms_of_day % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = date(days);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// The first digits of a digest: enough for people.
pub(super) fn short(digest: &Value) -> String {
    cell(digest).chars().take(12).collect()
}

/// The elements of a list; none for any other value.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A field's value; of a module only the start of its digest.
pub(super) fn value_of(field: &str, value: &Value) -> String {
    match field {
        "module" | "error_handler" if value.is_string() => short(value),
        _ => cell(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Texts with characters of all kinds, in pseudorandom order.
    fn strange_texts() -> impl Iterator<Item = String> {
        let mut random = fastrand::Rng::with_seed(7);
        let steering =
            "\u{0}\u{1b}\u{7f}\u{85}\u{9b}\u{202e}\u{2028}\u{2066}\u{feff}\r\n\t\u{e0041}";
        let kinds: Vec<char> = steering.chars().chain("ab-\"é漢🦀\\ ".chars()).collect();
        (0..2_000).map(move |_| {
            let length = random.usize(0..20);
            (0..length)
                .map(|_| kinds[random.usize(0..kinds.len())])
                .collect()
        })
    }

    #[test]
    fn a_stranger_s_text_cannot_steer_the_terminal() {
        for text in strange_texts() {
            let value = json!({ "a": text });
            let shown = table(&["A"], vec![vec![cell(&value["a"])]], "");
            assert!(!shown.replace('\n', "").contains(steers), "{shown:?}");
            let shown = facts(&[("a", cell(&value["a"]))]);
            assert!(!shown.contains(steers), "{shown:?}");
            let shown = harmless_json(&value);
            assert!(!shown.contains(steers), "{shown:?}");
            let same: Value = serde_json::from_str(&shown).expect("JSON");
            assert_eq!(same, value);
            assert!(!harmless(&text).replace('\n', "").contains(steers));
        }
    }

    #[test]
    fn a_text_that_looks_like_nothing_is_told_apart_from_nothing() {
        let shown = [
            json!(null),
            json!("-"),
            json!("\"-\""),
            json!(""),
            json!("--"),
        ]
        .map(|v| cell(&v));
        assert_eq!(shown, ["-", "\"-\"", "\"\"-\"\"", "", "--"]);
    }

    #[test]
    fn moments_are_read_as_dates() {
        for (ms, text) in [
            (0u64, "1970-01-01 00:00:00.000Z"),
            (951_782_400_000, "2000-02-29 00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29 23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000Z"),
            (1_767_225_599_001, "2025-12-31 23:59:59.001Z"),
        ] {
            assert_eq!(when(&json!(ms)), text);
        }
        assert_eq!(when(&json!(null)), "-");
    }

    #[test]
    fn nothing_is_a_dash_and_a_list_has_commas() {
        assert_eq!(cell(&json!(null)), "-");
        assert_eq!(cell(&json!(["a", 1])), "a, 1");
    }
}
