//! All sections of the configuration together, and what holds between them.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, refused};
use super::names;
use crate::encryption::EncryptionSettings;
use crate::engine::EngineSettings;
use crate::http::settings::HttpSettings;
use crate::memory::MemorySettings;
use crate::modules::ModuleSettings;
use crate::telemetry::LogSettings;

/// All that a host is started with: what concerns it as a whole, and its sections.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The doors.
    #[command(flatten)]
    pub listen: ListenSettings,
    /// Directory for messages, modules and the compile cache [default: millrace-data]
    #[arg(long, id = "data_dir", value_name = "DIR")]
    #[serde(serialize_with = "names::shown")]
    pub data_dir: PathBuf,
    /// How long a stop may take: requests under way have all of it, guests' calls half [default: 10000]
    #[arg(long, id = "stop_deadline_ms", value_name = "MS")]
    pub stop_deadline_ms: u64,
    /// Where data is kept.
    #[command(flatten)]
    pub engine: EngineSettings,
    /// What the data directory is encrypted with.
    #[command(flatten)]
    pub encryption: EncryptionSettings,
    /// What is logged.
    #[command(flatten)]
    pub log: LogSettings,
    /// What may be held in memory.
    #[command(flatten)]
    pub limits: MemorySettings,
    /// What modules may have.
    #[command(flatten)]
    pub modules: ModuleSettings,
    /// The `millrace` binary that compiles uploads in a child process; this process's own by default. No setting: for tests.
    #[arg(skip)]
    #[serde(skip)]
    pub compile_program: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("millrace-data"),
            stop_deadline_ms: 10_000,
            listen: ListenSettings::default(),
            engine: EngineSettings::default(),
            encryption: EncryptionSettings::default(),
            log: LogSettings::default(),
            limits: MemorySettings::default(),
            modules: ModuleSettings::default(),
            compile_program: None,
        }
    }
}

/// `[listen]`: what holds for every door, and the doors.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSettings {
    /// The door for HTTP.
    #[command(flatten)]
    pub http: HttpSettings,
    /// Listen beyond this machine although anybody who connects may do everything
    #[arg(
        long = "insecure-no-auth",
        id = "listen.insecure_no_auth",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub insecure_no_auth: bool,
}

impl Config {
    /// Checks what can be checked before anything is opened; also what keeps strangers out.
    ///
    /// # Errors
    /// [`ConfigError::Value`], [`ConfigError::Exposed`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.data_dir.as_os_str().is_empty() || self.data_dir == Path::new("/") {
            let value = self.data_dir.display().to_string();
            return Err(refused("data_dir", value, "name a directory of its own"));
        }
        self.listen.http.check()?;
        self.engine.local.check()?;
        self.limits.check()?;
        self.modules.check()?;
        let addresses = self.listen.http.addresses()?;
        let is_exposed = addresses.iter().any(|address| !address.ip().is_loopback());
        if is_exposed && !self.listen.insecure_no_auth {
            let listen = self.listen.http.address.clone();
            return Err(ConfigError::Exposed { listen });
        }
        Ok(())
    }
}
