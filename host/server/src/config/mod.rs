//! Configuration: flags override the environment, which overrides the file, which overrides the
//! defaults. Unknown keys are refused, with their line and the most similar name, because a setting
//! that is silently ignored is worse than a host that does not start.
//!
//! A setting is a field of a section, and each section is declared beside the code that it
//! configures. The field's name is the key in the file; its id is the whole path, from which the
//! name of its environment variable follows. [`sections`] has all sections, [`settings`] puts flags
//! and variables over the [`file`], and [`names`] knows the old spellings.

pub(crate) mod error;
mod file;
pub(crate) mod names;
mod sections;
mod settings;

use std::path::Path;

use clap::FromArgMatches;

pub use crate::access::{AccessSettings, ClientCertificates, TlsSettings};
pub use crate::encryption::EncryptionSettings;
pub use crate::engine::{EngineKind, EngineSettings, LocalSettings};
pub use crate::http::settings::HttpSettings;
pub use crate::identity::settings::ProviderSettings;
pub use crate::memory::MemorySettings;
pub use crate::modules::ModuleSettings;
pub use crate::telemetry::{GuestLog, LogFormat, LogSettings};
pub use error::ConfigError;
pub use sections::{Config, ListenSettings};
pub use settings::{Settings, unknown_variables};

impl Config {
    /// What a file says, without flags and variables.
    pub(crate) fn of_file(file: &Path) -> Result<Self, ConfigError> {
        let (config, _) = file::read(file)?;
        config.check()?;
        Ok(config)
    }

    /// Puts `settings` over those of the file and the defaults, and checks the result. Also returns
    /// hints about settings in their old spelling, one line each.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting, its place, and what to write instead.
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
