//! All sections of the configuration, and the rules between them.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, refused};
use super::names;
use crate::access::{AccessSettings, TlsSettings};
use crate::encryption::EncryptionSettings;
use crate::engine::EngineSettings;
use crate::http::settings::HttpSettings;
use crate::memory::MemorySettings;
use crate::modules::ModuleSettings;
use crate::secrets::SecretSettings;
use crate::telemetry::LogSettings;

/// The whole configuration of a host: general settings, and its sections.
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
    /// How long a stop may take; running requests get all of it, calls of components half [default:
    /// 10000]
    #[arg(long, id = "stop_deadline_ms", value_name = "MS")]
    pub stop_deadline_ms: u64,
    /// Who may call.
    #[command(flatten)]
    pub access: AccessSettings,
    /// How data is stored.
    #[command(flatten)]
    pub engine: EngineSettings,
    /// How the data directory is encrypted.
    #[command(flatten)]
    pub encryption: EncryptionSettings,
    /// What is logged.
    #[command(flatten)]
    pub log: LogSettings,
    /// Bounds of memory.
    #[command(flatten)]
    pub limits: MemorySettings,
    /// Limits of modules.
    #[command(flatten)]
    pub modules: ModuleSettings,
    /// Secrets of components.
    #[command(flatten)]
    pub secrets: SecretSettings,
    /// The `millrace` binary that compiles uploads in a child process; by default this process's
    /// own. Not a setting, only for tests.
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
            access: AccessSettings::default(),
            engine: EngineSettings::default(),
            encryption: EncryptionSettings::default(),
            log: LogSettings::default(),
            limits: MemorySettings::default(),
            modules: ModuleSettings::default(),
            secrets: SecretSettings::default(),
            compile_program: None,
        }
    }
}

/// `[listen]`: the settings of every door, and those of all doors together.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenSettings {
    /// The door for HTTP.
    #[command(flatten)]
    pub http: HttpSettings,
    /// TLS of every door.
    #[command(flatten)]
    pub tls: TlsSettings,
    /// Accept connections from other machines, although anyone who can connect may do everything
    #[arg(
        long = "insecure-no-auth",
        id = "listen.insecure_no_auth",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub insecure_no_auth: bool,
    /// Listen on this Unix socket, too: HTTP without TLS, for the host's own user and root, who may do everything there without a token
    #[arg(long = "listen-socket", id = "listen.socket", value_name = "FILE")]
    #[serde(serialize_with = "names::maybe_shown")]
    pub socket: Option<PathBuf>,
}

impl Config {
    /// Checks everything that can be checked before anything is opened, and that the host is not
    /// exposed by mistake.
    ///
    /// # Errors
    /// [`ConfigError::Value`], [`ConfigError::Exposed`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.data_dir.as_os_str().is_empty() || self.data_dir == Path::new("/") {
            let value = self.data_dir.display().to_string();
            return Err(refused("data_dir", value, "name a directory of its own"));
        }
        self.listen.http.check()?;
        self.listen.tls.check()?;
        self.access.check()?;
        self.engine.check()?;
        self.limits.check()?;
        self.modules.check()?;
        let is_guarded = self.listen.tls.is_on() && self.access.is_required();
        if self.is_exposed()? && !is_guarded && !self.listen.insecure_no_auth {
            let listen = self.listen.http.address.clone();
            return Err(ConfigError::Exposed { listen });
        }
        Ok(())
    }

    /// Whether other machines can connect.
    pub(crate) fn is_exposed(&self) -> Result<bool, ConfigError> {
        let addresses = self.listen.http.addresses()?;
        Ok(addresses.iter().any(|address| !address.ip().is_loopback()))
    }
}
