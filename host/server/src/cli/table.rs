//! Tables for people.

use comfy_table::{ContentArrangement, Table, presets};
use millrace_model::calendar::date;
use serde_json::Value;

/// A table with a heading; just the note where there are no rows.
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

/// Names and values, one pair a line.
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

/// The text without what would move a terminal's cursor or change its colours.
pub(super) fn harmless(text: &str) -> String {
    let shown = |c: char| match c {
        '\t' | '\n' => c,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
}

/// A JSON value as people read it: text bare, nothing as a dash, a list with commas.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Milliseconds since the Unix epoch as a date and time, UTC.
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

/// The elements of a list, or none.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stranger_s_text_cannot_steer_the_terminal() {
        let table = table(&["A"], vec![vec!["\u{1b}[2Jx".to_owned()]], "");
        assert!(
            !table.contains('\u{1b}') && table.contains("[2Jx"),
            "{table}"
        );
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
