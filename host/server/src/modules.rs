//! The module host: the limits of modules, and how it is started.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use millrace_broker::{ModuleHost, ModulePolicy, SignaturePolicy, TrustedKey, VersionOrder};
use millrace_model::{Clock, GuestLimits};
use millrace_wasm::{CompileChild, WasmHost, WasmOptions};
use serde::{Deserialize, Serialize};

use crate::config::error::{ConfigError, refused};
use crate::memory::MemoryPlan;
use crate::secrets::Secrets;

/// The hidden subcommand that compiles an upload, in a process of its own.
pub(crate) const COMPILE_COMMAND: &str = "compile-module";

/// `[modules]`: the limits of modules and of their compiles.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModuleSettings {
    /// Maximum bytes of an uploaded module, 64 KiB to 192 MiB [default: 64 MiB, or a 16th of the
    /// memory if that is less]
    #[arg(long, id = "modules.module_bytes_max", value_name = "BYTES")]
    pub module_bytes_max: u64,
    /// Maximum memory of an instance that a processor may request, 1 MiB to 4 GiB [default: 1 GiB,
    /// or the memory of all components together if that is less]
    #[arg(long, id = "modules.guest_memory_bytes_max", value_name = "BYTES")]
    pub guest_memory_bytes_max: u64,
    /// Maximum elements of a component's table, 100 to 1000000 [default: 20000]
    #[arg(long, id = "modules.guest_table_elements_max", value_name = "COUNT")]
    pub guest_table_elements_max: u64,
    /// How long a component may take to start, 10 to 600000 [default: 10000]
    #[arg(long, id = "modules.guest_start_ms_max", value_name = "MS")]
    pub guest_start_ms_max: u64,
    /// CPU time of a compile, 1 to 3600, plus 5 seconds per MiB of the component [default: 30]
    #[arg(long, id = "modules.compile_cpu_seconds_max", value_name = "SECONDS")]
    pub compile_cpu_seconds_max: u64,
    /// Memory of the compiler process, 32 MiB to 64 GiB [default: 2 GiB, or three 32nds of the
    /// memory if that is less]
    #[arg(long, id = "modules.compile_memory_bytes_max", value_name = "BYTES")]
    pub compile_memory_bytes_max: u64,
    /// Whether the versions of a name may only rise: any, monotonic [default: any]
    #[arg(
        long = "module-versions",
        id = "modules.versions",
        value_name = "ORDER"
    )]
    pub versions: Versions,
    /// Refuse modules without a signature by a trusted key
    #[arg(
        long = "require-signature",
        id = "modules.require_signature",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL"
    )]
    pub require_signature: bool,
    /// A file with a public key whose signatures of modules count (minisign's format); repeat it for
    /// several, or separate them by commas
    #[arg(
        long = "trusted-key",
        id = "modules.trusted_keys",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub trusted_keys: Vec<PathBuf>,
    /// A PEM file with certificates that components' HTTPS requests trust besides those that
    /// browsers trust
    #[arg(long, id = "modules.http_roots_file", value_name = "FILE")]
    pub http_roots_file: Option<PathBuf>,
}

/// Bytes of a file with a public key; a larger one is refused.
const TRUSTED_KEY_BYTES_MAX: u64 = 4 << 10;

/// How the versions of a module's name may follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Versions {
    /// In any order.
    #[default]
    Any,
    /// Each newer than every earlier one, as semantic versions.
    Monotonic,
}

impl From<Versions> for VersionOrder {
    fn from(versions: Versions) -> Self {
        match versions {
            Versions::Any => Self::Any,
            Versions::Monotonic => Self::Monotonic,
        }
    }
}

impl Default for ModuleSettings {
    fn default() -> Self {
        GuestLimits::default().into()
    }
}

impl From<GuestLimits> for ModuleSettings {
    fn from(limits: GuestLimits) -> Self {
        Self {
            module_bytes_max: limits.module_bytes_max,
            guest_memory_bytes_max: limits.guest_memory_bytes_max,
            guest_table_elements_max: limits.guest_table_elements_max,
            guest_start_ms_max: limits.guest_start_ms_max,
            compile_cpu_seconds_max: limits.compile_cpu_seconds_max,
            compile_memory_bytes_max: limits.compile_memory_bytes_max,
            versions: Versions::default(),
            require_signature: false,
            trusted_keys: Vec::new(),
            http_roots_file: None,
        }
    }
}

impl ModuleSettings {
    /// The rules for modules, in the form for the broker that applies them.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the file that is no public key, or says that there is none.
    pub(crate) fn policy(&self) -> Result<ModulePolicy, ConfigError> {
        if self.require_signature && self.trusted_keys.is_empty() {
            let why = "no module could be uploaded without a trusted key; name the files of the public keys in trusted_keys";
            return Err(refused("modules.require_signature", "true", why));
        }
        let trusted = self.trusted_keys.iter().map(|file| trusted_key(file));
        Ok(ModulePolicy {
            versions: self.versions.into(),
            signatures: SignaturePolicy {
                required: self.require_signature,
                trusted: trusted.collect::<Result<_, _>>()?,
            },
        })
    }

    /// The same limits in the form for the code that applies them.
    pub(crate) fn limits(&self) -> GuestLimits {
        GuestLimits {
            module_bytes_max: self.module_bytes_max,
            guest_memory_bytes_max: self.guest_memory_bytes_max,
            guest_table_elements_max: self.guest_table_elements_max,
            guest_start_ms_max: self.guest_start_ms_max,
            compile_cpu_seconds_max: self.compile_cpu_seconds_max,
            compile_memory_bytes_max: self.compile_memory_bytes_max,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        match self.limits().out_of_bounds() {
            Some((key, value, from, to)) => {
                let why = format!("it goes from {from} to {to}");
                Err(refused(format!("modules.{key}"), value.to_string(), why))
            }
            None => Ok(()),
        }
    }
}

fn trusted_key(file: &Path) -> Result<TrustedKey, ConfigError> {
    let wrong = |why: String| {
        refused(
            "modules.trusted_keys",
            file.display().to_string(),
            why + "; name the public key that `millrace module keygen` or `minisign -G` wrote",
        )
    };
    let about = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?;
    if about.len() > TRUSTED_KEY_BYTES_MAX {
        return Err(wrong(format!("it has {} bytes", about.len())));
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    TrustedKey::parse(&text).ok_or_else(|| wrong("it is not a public key".to_owned()))
}

/// What a module host needs besides its settings.
pub(crate) struct Surroundings<'a> {
    /// Where compiled code is stored.
    pub(crate) cache_dir: PathBuf,
    /// The `millrace` binary that compiles; this process's own if `None`.
    pub(crate) program: Option<&'a PathBuf>,
    /// Whether the data directory is encrypted. Compiled code reveals the component's content and
    /// is not encrypted, so it is not stored then.
    pub(crate) is_encrypted: bool,
    /// Whether guests' log lines go to the host's log.
    pub(crate) ships_lines: bool,
    /// Where secrets come from.
    pub(crate) secrets: Secrets,
}

/// Starts the module host.
pub(crate) fn open(
    settings: &ModuleSettings,
    around: Surroundings<'_>,
    memory: &MemoryPlan,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Arc<dyn ModuleHost>> {
    let program = match around.program {
        Some(program) => program.clone(),
        None => own_program()?,
    };
    let compile_child = CompileChild {
        program,
        args: vec![COMPILE_COMMAND.to_owned()],
    };
    let configured = settings.limits();
    let mut options = WasmOptions::new(around.cache_dir, compile_child);
    options.memory_bytes_max = memory.guest_bytes as u64;
    options.limits = memory.guests(configured);
    options.one_compile = memory.compile_bytes < configured.compile_memory_bytes_max;
    options.code_bytes_max = options.code_bytes_max.min(options.limits.module_bytes_max);
    options.ships_lines = around.ships_lines;
    options.http.roots_file = settings.http_roots_file.clone();
    options.secrets = Arc::new(around.secrets);
    options.keeps_code = !around.is_encrypted;
    Ok(WasmHost::new(options, clock.clone())?)
}

/// The running binary itself, even after another one was installed in its place.
pub(crate) fn own_program() -> std::io::Result<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    match running.exists() {
        true => Ok(running),
        false => std::env::current_exe(),
    }
}
