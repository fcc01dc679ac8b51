//! "Did you mean …?": the nearest right name to a wrong one, for fields, keys and options.

/// Below this likeness (0 to 1) a suggestion would confuse more than help.
const LIKENESS_MIN: f64 = 0.6;

/// The candidate most like `wrong`, if any is like it at all.
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

/// What to do about a message of serde's that names an unknown field or variant and, in backticks, those that are known.
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

#[cfg(test)]
mod tests {
    use super::*;

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
