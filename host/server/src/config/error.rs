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
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file has an unknown key or a wrong value.
    #[error("{path}:{line}: {message}")]
    File {
        /// The file's path.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to write instead.
        message: String,
    },
    /// A value is not allowed.
    #[error("{key} cannot be {value:?}: {why}")]
    Value {
        /// The setting's path.
        key: String,
        /// The refused value, as text.
        value: String,
        /// The rule that it breaks.
        why: String,
    },
    /// The command line or a variable is wrong.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// A setting is given by two variables.
    #[error(
        "{old} and {new} are variables of the same setting; keep {new}, and unset the other one"
    )]
    VariablesTwice {
        /// The old spelling.
        old: String,
        /// The current spelling.
        new: String,
    },
    /// The encryption keys are invalid.
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
    /// Anyone who can connect could do everything.
    #[error(
        "{listen} can be reached from other machines, and anyone who can connect could do everything. Ask for tokens and encrypt them: \
         --require-tokens --tls-certificate FILE --tls-key FILE; or listen on 127.0.0.1; or, if a proxy or firewall before it keeps \
         strangers out, say so with --insecure-no-auth"
    )]
    Exposed {
        /// The address that other machines can reach.
        listen: String,
    },
}

/// An error that refuses a setting's value.
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
