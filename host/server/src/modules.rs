//! The module host: the limits of modules, and how it is started.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use millrace_broker::ModuleHost;
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
    /// A PEM file with certificates that components' HTTPS requests trust besides those that
    /// browsers trust
    #[arg(long, id = "modules.http_roots_file", value_name = "FILE")]
    pub http_roots_file: Option<PathBuf>,
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
            http_roots_file: None,
        }
    }
}

impl ModuleSettings {
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
fn own_program() -> std::io::Result<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    match running.exists() {
        true => Ok(running),
        false => std::env::current_exe(),
    }
}
