//! Configuration: flags before environment before file before defaults. Unknown keys are refused, with their line and the nearest
//! right name, because a setting that is silently ignored is worse than a host that does not start.
//!
//! A setting is a field of its section, and a section stands beside what it configures. The field is its key in the file; its id is the
//! whole path, and the name of its environment variable follows from that. [`sections`] holds all of them, [`settings`] puts flags and
//! variables over the [`file`], and [`names`] knows how settings were spelt before.

pub(crate) mod error;
mod file;
pub(crate) mod names;
mod sections;
mod settings;

use std::path::Path;

use clap::FromArgMatches;

pub use crate::encryption::EncryptionSettings;
pub use crate::engine::{EngineKind, EngineSettings, LocalSettings};
pub use crate::http::settings::HttpSettings;
pub use crate::memory::MemorySettings;
pub use crate::modules::ModuleSettings;
pub use crate::telemetry::{GuestLog, LogFormat, LogSettings};
pub use error::ConfigError;
pub use sections::{Config, ListenSettings};
pub use settings::{Settings, unknown_variables};

impl Config {
    /// Puts the settings over those of the file over the defaults, and checks what comes out. Beside the configuration come hints about
    /// settings that are spelt as they were before, a line each.
    ///
    /// # Errors
    /// [`ConfigError`] says which setting, where it stands and what would be right.
    pub fn load(
        settings: &Settings,
        file: Option<&Path>,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let (mut config, mut hints) = match file {
            Some(file) => file::read(file)?,
            None => (Self::default(), Vec::new()),
        };
        hints.extend(settings::check_variables(names::is_set)?);
        config.update_from_arg_matches(settings.given())?;
        config.check()?;
        Ok((config, hints))
    }
}

#[cfg(test)]
mod tests;
