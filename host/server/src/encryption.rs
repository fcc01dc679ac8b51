//! The encryption keys of the data directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use millrace_local::Cipher;
use serde::{Deserialize, Serialize};

use crate::config::error::ConfigError;
use crate::config::names::{self, KEY_VARIABLE};

/// `[encryption]`: where the keys are.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncryptionSettings {
    /// Encrypt stored data with the first key in this file (lines of ID:KEY, 64 hexadecimal
    /// digits); later keys only decrypt. The variable MILLRACE_ENCRYPTION_KEY can hold such lines
    /// instead
    #[arg(
        long = "encryption-key-file",
        id = "encryption.key_file",
        value_name = "FILE"
    )]
    #[serde(serialize_with = "names::maybe_shown")]
    pub key_file: Option<PathBuf>,
}

impl EncryptionSettings {
    /// Whether keys are given.
    #[must_use]
    pub fn is_on(&self) -> bool {
        let variable = std::env::var_os(KEY_VARIABLE);
        self.key_file.is_some() || variable.is_some_and(|keys| !keys.is_empty())
    }

    /// The keys; `None` if none are given.
    pub(crate) fn keys(&self) -> Result<Option<Arc<Cipher>>, ConfigError> {
        encryption_keys(self.key_file.as_deref())
    }
}

/// The encryption keys from the file or from [`KEY_VARIABLE`]; `None` if neither is given.
///
/// # Errors
/// [`ConfigError::Keys`], [`ConfigError::KeysTwice`]; neither shows a key.
pub(crate) fn encryption_keys(file: Option<&Path>) -> Result<Option<Arc<Cipher>>, ConfigError> {
    let variable = std::env::var(KEY_VARIABLE).ok();
    let variable = variable.filter(|text| !text.trim().is_empty());
    let cipher = match (file, variable) {
        (Some(file), Some(_)) => {
            let file = file.to_owned();
            return Err(ConfigError::KeysTwice { file });
        }
        (Some(file), None) => Cipher::from_file(file)?,
        (None, Some(text)) => Cipher::parse(&text)?,
        (None, None) => return Ok(None),
    };
    Ok(Some(Arc::new(cipher)))
}
