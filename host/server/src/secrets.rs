//! Secrets of the host: files of a directory, or environment variables.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use clap::Args;
use millrace_model::SecretName;
use millrace_wasm::SecretStore;
use serde::{Deserialize, Serialize};

use crate::config::error::{ConfigError, refused};
use crate::config::names::{self, SECRET_PREFIX};

/// Bytes of a secret's value.
pub(crate) const SECRET_BYTES_MAX: u64 = 64 << 10;

/// `[secrets]`: where secrets of components come from.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SecretSettings {
    /// Directory with one file for each secret, named after it. A changed file takes effect with the component's next call
    #[arg(long = "secrets-dir", id = "secrets.directory", value_name = "DIR")]
    #[serde(serialize_with = "names::maybe_shown")]
    pub directory: Option<PathBuf>,
}

/// Reads a secret whenever a component asks for it, so that a new value needs no restart. A file comes before a variable.
#[derive(Debug)]
pub(crate) struct Secrets {
    directory: Option<PathBuf>,
}

impl Secrets {
    /// # Errors
    /// [`ConfigError::Value`] if the directory does not exist: each secret would be missing.
    pub(crate) fn of(settings: &SecretSettings) -> Result<Self, ConfigError> {
        let directory = settings.directory.clone();
        match &directory {
            Some(directory) if !directory.is_dir() => {
                let value = directory.display().to_string();
                let why = "it is not a directory; create it, or remove the setting";
                Err(refused("secrets.directory", value, why))
            }
            _ => Ok(Self { directory }),
        }
    }

    fn of_file(&self, name: &SecretName) -> Option<std::io::Result<Vec<u8>>> {
        // A secret's name has no slash and is neither `.` nor `..`.
        let path = self.directory.as_ref()?.join(name.as_str());
        let read = || {
            let mut bytes = Vec::new();
            let file = File::open(&path)?;
            file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        match read() {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            read => Some(read),
        }
    }
}

impl SecretStore for Secrets {
    fn secret(&self, name: &SecretName) -> Result<Vec<u8>, String> {
        let value = match self.of_file(name) {
            Some(Ok(bytes)) => without_line_end(bytes),
            Some(Err(error)) => {
                return Err(format!("secret {name} cannot be read by the host: {error}"));
            }
            None => match std::env::var(variable(name)) {
                Ok(text) => text.into_bytes(),
                Err(_) => {
                    return Err(format!(
                        "the host has no secret {name}: it needs a file {name} in its secrets directory, or the variable {}",
                        variable(name)
                    ));
                }
            },
        };
        match value.len() as u64 {
            0 => Err(format!("secret {name} is empty")),
            bytes if bytes > SECRET_BYTES_MAX => Err(format!(
                "secret {name} has more than {SECRET_BYTES_MAX} bytes"
            )),
            _ => Ok(value),
        }
    }
}

/// Editors and `echo` end a file with a line end that is not part of the secret.
fn without_line_end(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

/// The variable of a secret.
fn variable(name: &SecretName) -> String {
    let spelled = name.as_str().replace(['-', '.'], "_");
    format!("{SECRET_PREFIX}{}", spelled.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_that_does_not_exist_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let refused = Secrets::of(&SecretSettings {
            directory: Some(directory.path().join("missing")),
        });
        let why = refused.map(drop).expect_err("it is missing").to_string();
        assert!(why.contains("create it"), "{why}");
    }

    #[test]
    fn a_file_is_read_anew_each_time_and_its_line_end_is_not_part_of_the_secret() {
        let directory = tempfile::tempdir().expect("a directory");
        let secrets = Secrets::of(&SecretSettings {
            directory: Some(directory.path().to_owned()),
        });
        let secrets = secrets.expect("the directory exists");
        let name = SecretName::parse("api-key").expect("a name");
        let missing = secrets.secret(&name).expect_err("no file yet");
        assert!(missing.contains("MILLRACE_SECRET_API_KEY"), "{missing}");
        for (written, read) in [
            ("first\n", "first"),
            ("second\r\n", "second"),
            ("a\n\n", "a\n"),
        ] {
            fs::write(directory.path().join("api-key"), written).expect("written");
            assert_eq!(secrets.secret(&name), Ok(read.as_bytes().to_vec()));
        }
        for wrong in [String::new(), "x".repeat(SECRET_BYTES_MAX as usize + 1)] {
            fs::write(directory.path().join("api-key"), wrong).expect("written");
            assert!(secrets.secret(&name).is_err());
        }
    }
}
