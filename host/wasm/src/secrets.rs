//! Secrets of the host: where they come from, and how their values stay out of what guests log.

use std::fmt;

use millrace_model::SecretName;
use millrace_model::plain::steers;
use parking_lot::Mutex;

/// Where the host keeps secrets.
pub trait SecretStore: fmt::Debug + Send + Sync + 'static {
    /// The present value of a secret.
    ///
    /// # Errors
    /// A sentence for the component and operators: the secret is missing or cannot be read. It never contains a value.
    fn secret(&self, name: &SecretName) -> Result<Vec<u8>, String>;
}

/// A host without secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

impl SecretStore for NoSecrets {
    fn secret(&self, name: &SecretName) -> Result<Vec<u8>, String> {
        Err(format!("this host has no secret {name}"))
    }
}

/// Shorter values are not hidden: they occur in texts by chance.
const HIDDEN_BYTES_MIN: usize = 4;

/// Values that one instance has read and that are hidden. Beyond it, the shortest is forgotten.
const VALUES_MAX: usize = 100;

/// The values of secrets that an instance has read, to be removed from its texts.
#[derive(Default)]
pub(crate) struct Hidden(Mutex<Vec<(SecretName, String)>>);

impl Hidden {
    /// From now on, the value is removed from texts.
    pub(crate) fn hide(&self, name: &SecretName, value: &[u8]) {
        // As lines of the log are written, without control characters.
        let lossy = String::from_utf8_lossy(value);
        let value = lossy.replace(|c| steers(c) && !matches!(c, '\n' | '\r'), " ");
        let mut hidden = self.0.lock();
        // A key in several lines is logged line by line.
        let pieces = value
            .split(['\n', '\r'])
            .map(str::trim)
            .filter(|piece| piece.len() >= HIDDEN_BYTES_MIN);
        for piece in pieces {
            if hidden.iter().any(|(_, known)| known == piece) {
                continue;
            }
            if hidden.len() >= VALUES_MAX {
                hidden.pop();
            }
            hidden.push((name.clone(), piece.to_owned()));
        }
        // A value that is part of another one is replaced after it.
        hidden.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    }

    /// The text without values of secrets.
    pub(crate) fn removed_from(&self, text: String) -> String {
        let hidden = self.0.lock();
        if hidden.is_empty() {
            return text;
        }
        let mut text = text;
        for (name, value) in hidden.iter() {
            if text.contains(value) {
                text = text.replace(value, &format!("[secret {name}]"));
            }
            // The text may have been cut within the value.
            let start = (HIDDEN_BYTES_MIN..value.len())
                .rev()
                .filter(|&length| value.is_char_boundary(length))
                .find(|&length| text.ends_with(&value[..length]));
            if let Some(length) = start {
                text.truncate(text.len() - length);
                text.push_str(&format!("[secret {name}]"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_removed_from_texts_whole_in_lines_and_cut_at_the_end() {
        let hidden = Hidden::default();
        let name = SecretName::parse("token").expect("a name");
        let text = |text: &str| hidden.removed_from(text.to_owned());
        assert_eq!(text("a hunter22 b"), "a hunter22 b");
        hidden.hide(&name, b"hunter22");
        assert_eq!(
            text("a hunter22 b hunter22"),
            "a [secret token] b [secret token]"
        );
        assert_eq!(text("a hunte"), "a [secret token]");
        assert_eq!(text("a hun"), "a hun");
        hidden.hide(&name, b"-----BEGIN\nabcdef\n\nxyz\n");
        assert_eq!(text("abcdef xyz"), "[secret token] xyz");
        hidden.hide(&name, b"abcdef-and-more\twith a tab");
        assert_eq!(text("abcdef-and-more with a tab"), "[secret token]");
        for n in 0..2 * VALUES_MAX {
            hidden.hide(&name, format!("value {n}").as_bytes());
        }
        assert_eq!(hidden.0.lock().len(), VALUES_MAX);
    }
}
