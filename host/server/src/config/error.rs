//! Why a configuration is refused.

use std::path::PathBuf;

use millrace_local::KeyError;

use super::names::KEY_VARIABLE;

/// Why a configuration is refused. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {path} cannot be read: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that is not known or does not fit.
    #[error("{path}:{line}: {message}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Where in it, counted from 1.
        line: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A value cannot be.
    #[error("{key} cannot be {value:?}: {why}")]
    Value {
        /// Which setting.
        key: String,
        /// The text's length.
        value: String,
        /// The rule.
        why: String,
    },
    /// Flags and variables do not go together.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// A setting is given by two variables.
    #[error(
        "{old} and {new} are variables of the same setting; keep {new}, and unset the other one"
    )]
    VariablesTwice {
        /// As it was spelt before.
        old: String,
        /// As it is spelt.
        new: String,
    },
    /// The keys for encryption are none.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The keys are in two places.
    #[error(
        "encryption keys are given in the file {} and in {KEY_VARIABLE}; give them in one place only",
        file.display()
    )]
    KeysTwice {
        /// The file.
        file: PathBuf,
    },
    /// Everybody could do everything.
    #[error(
        "{listen} can be reached from other machines, and this host has no authentication. Listen on 127.0.0.1, or, if a proxy or \
         firewall before it keeps strangers out, say so with --insecure-no-auth"
    )]
    Exposed {
        /// The address.
        listen: String,
    },
}

/// A refusal of a setting's value.
pub(crate) fn refused(
    key: impl Into<String>,
    value: impl Into<String>,
    why: impl Into<String>,
) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        value: value.into(),
        why: why.into(),
    }
}
