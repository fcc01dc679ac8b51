//! The settings of a processor that its component reads: texts by key, changed without a deployment.

use std::collections::BTreeMap;
use std::collections::btree_map::Iter;

use serde::{Deserialize, Serialize};

use crate::bounds::{CONFIG_BYTES_MAX, CONFIG_KEY_CHARS_MAX, CONFIG_KEYS_MAX};

/// Keys and values, in ascending order of keys. A value of this type is within its bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Config(BTreeMap<String, String>);

/// Why keys and values cannot be a processor's settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// An empty key, or one beyond its bound, or with other characters.
    #[error(
        "{0:?} is not a key of a configuration: use 1 to {CONFIG_KEY_CHARS_MAX} letters, digits, '.', '_' and '-'"
    )]
    Key(String),
    /// Too many keys.
    #[error("a configuration has at most {CONFIG_KEYS_MAX} keys; this one has {0}")]
    Keys(usize),
    /// Too many bytes.
    #[error(
        "a configuration has at most {CONFIG_BYTES_MAX} bytes, keys and values together; this one has {0}"
    )]
    Bytes(usize),
}

impl Config {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All keys and their values.
    pub fn iter(&self) -> Iter<'_, String, String> {
        self.0.iter()
    }

    /// The same settings with these keys changed; `None` removes a key.
    ///
    /// # Errors
    /// [`ConfigError`] if a key or the whole is beyond a bound.
    pub fn with(
        &self,
        changes: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<Self, ConfigError> {
        let mut values = self.0.clone();
        for (key, value) in changes {
            check_key(&key)?;
            match value {
                Some(value) => values.insert(key, value),
                None => values.remove(&key),
            };
        }
        Self::try_from(values)
    }
}

impl<'a> IntoIterator for &'a Config {
    type Item = (&'a String, &'a String);
    type IntoIter = Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn check_key(key: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match !key.is_empty() && key.len() <= CONFIG_KEY_CHARS_MAX && key.chars().all(allowed) {
        true => Ok(()),
        false => Err(ConfigError::Key(
            key.chars().take(CONFIG_KEY_CHARS_MAX).collect(),
        )),
    }
}

impl TryFrom<BTreeMap<String, String>> for Config {
    type Error = ConfigError;

    fn try_from(values: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        values.keys().try_for_each(|key| check_key(key))?;
        let bytes = values
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        match (values.len(), bytes) {
            (keys, _) if keys > CONFIG_KEYS_MAX => Err(ConfigError::Keys(keys)),
            (_, bytes) if bytes > CONFIG_BYTES_MAX => Err(ConfigError::Bytes(bytes)),
            _ => Ok(Self(values)),
        }
    }
}

impl From<Config> for BTreeMap<String, String> {
    fn from(config: Config) -> Self {
        config.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_set_and_remove_keys_and_the_bounds_hold() {
        let set = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
        let config = Config::default()
            .with([set("a", "1"), set("b.c", "2")])
            .expect("two keys");
        assert_eq!(config.get("b.c"), Some("2"));
        let fewer = config.with([("a".to_owned(), None), ("x".to_owned(), None)]);
        assert_eq!(fewer.expect("fewer keys").get("a"), None);
        for key in ["", "a b", "ä", &"k".repeat(CONFIG_KEY_CHARS_MAX + 1)] {
            assert!(
                matches!(config.with([set(key, "1")]), Err(ConfigError::Key(_))),
                "{key}"
            );
        }
        let many = (0..=CONFIG_KEYS_MAX).map(|n| set(&n.to_string(), ""));
        assert_eq!(
            Config::default().with(many),
            Err(ConfigError::Keys(CONFIG_KEYS_MAX + 1))
        );
        let long = config.with([set("long", &"x".repeat(CONFIG_BYTES_MAX))]);
        assert!(matches!(long, Err(ConfigError::Bytes(_))));
    }
}
