//! Configuration: flags before environment before file before defaults. Unknown keys are refused, with their line and the nearest
//! right name, because a setting that is silently ignored is worse than a host that does not start.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use millrace_local::{Cipher, KeyError, LocalOptions};
use millrace_model::GuestLimits;
use serde::Deserialize;

use crate::memory::MemorySettings;
use crate::nearest::{hint_of, in_plain_words};

/// Where the host listens unless told otherwise.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:7400";
/// Connections at once, at the most, unless told otherwise. At the bound a silent one makes room; where none is, messages are refused (503),
/// and administration has a few connections of its own.
pub const CONNECTIONS_MAX_DEFAULT: usize = 1_024;
/// How long a connection is kept between two requests unless told otherwise: longer than the pools of common clients and proxies.
pub const IDLE_DEFAULT: Duration = Duration::from_secs(180);
/// A day: whoever asks for more means something else.
const IDLE_MS_MAX: u64 = 86_400_000;
/// How often retention and compaction look for work unless told otherwise.
pub const CLEANING_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);
/// A configuration file larger than this is none.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The variable that may hold encryption keys instead of a file. No flag: a command line is seen by everybody.
pub const KEY_VARIABLE: &str = "MILLRACE_ENCRYPTION_KEY";

/// Where data is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// In the data directory.
    #[default]
    Local,
    /// In memory only; gone with the process.
    Memory,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where lines that components write go, besides `processor logs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum GuestLog {
    /// Nowhere.
    #[default]
    Off,
    /// Into the host's log, each at its level, with the fields processor, topic, partition and revision.
    Host,
}

/// Sizes of the local engine, in bytes; the engine's own unless set. Small ones make a host roll, checkpoint and use files again
/// often: for small machines, and to provoke in minutes what takes months otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageSizes {
    /// One file of the journal.
    pub journal_file_bytes: Option<u64>,
    /// One segment of a partition.
    pub segment_bytes: Option<u64>,
    /// Journal between two checkpoints.
    pub checkpoint_journal_bytes: Option<u64>,
}

/// What each size may be: from, to (inclusive), and its key.
const STORAGE_BOUNDS: [(&str, u64, u64); 3] = [
    ("journal_file_bytes", 64 << 10, 1 << 30),
    ("segment_bytes", 4 << 10, 1 << 30),
    ("checkpoint_journal_bytes", 64 << 10, 16 << 30),
];

impl StorageSizes {
    /// The engine's options with these sizes.
    #[must_use]
    pub fn options(&self) -> LocalOptions {
        let mut options = LocalOptions::default();
        options.journal_file_bytes = self
            .journal_file_bytes
            .unwrap_or(options.journal_file_bytes);
        options.segment_bytes = self.segment_bytes.unwrap_or(options.segment_bytes);
        let between = self.checkpoint_journal_bytes;
        options.checkpoint_journal_bytes = between.unwrap_or(options.checkpoint_journal_bytes);
        options
    }

    fn check(&self) -> Result<(), ConfigError> {
        let set = [
            self.journal_file_bytes,
            self.segment_bytes,
            self.checkpoint_journal_bytes,
        ];
        for ((key, from, to), size) in STORAGE_BOUNDS.into_iter().zip(set) {
            let Some(size) = size else { continue };
            if !(from..=to).contains(&size) {
                let why = format!("between {from} and {to} bytes");
                return Err(refused(key, size.to_string(), &why));
            }
        }
        Ok(())
    }

    fn with(self, over: &Settings) -> Self {
        let between = over.checkpoint_journal_bytes;
        Self {
            journal_file_bytes: over.journal_file_bytes.or(self.journal_file_bytes),
            segment_bytes: over.segment_bytes.or(self.segment_bytes),
            checkpoint_journal_bytes: between.or(self.checkpoint_journal_bytes),
        }
    }
}

/// All that a host is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub listen: String,
    /// Where the local engine and the compile cache keep their files.
    pub data_dir: PathBuf,
    /// Where data is kept.
    pub engine: EngineKind,
    /// Whether others than this machine may connect although nobody is asked who they are.
    pub insecure_no_auth: bool,
    /// Names, besides loopback and that of `listen`, by which browsers and proxies may call this host.
    pub allowed_hosts: Vec<String>,
    /// Connections at once.
    pub connections_max: usize,
    /// How long a connection is kept between two requests.
    pub idle: Duration,
    /// How long a stop may take. Requests that are under way have all of it, calls of guests half.
    pub stop_deadline: Duration,
    /// Bytes that the background search for damage reads in a second, at the most; 0 is off.
    pub scrub_bytes_per_second: u64,
    /// How long after one round through everything the next one begins.
    pub scrub_interval: Duration,
    /// How often it is looked what retention and compaction have to do.
    pub cleaning_interval: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged: a level, or `target=level` pairs.
    pub log_filter: String,
    /// Where components' lines go, besides `processor logs`.
    pub guest_log: GuestLog,
    /// The file with the keys that the data directory is encrypted with.
    pub encryption_key_file: Option<PathBuf>,
    /// Sizes of the local engine.
    pub storage: StorageSizes,
    /// What may be held in memory.
    pub memory: MemorySettings,
    /// What modules may have.
    pub guests: GuestLimits,
    /// The `millrace` binary that compiles uploads in a child process; this process's own by default.
    pub compile_program: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: LISTEN_DEFAULT.to_owned(),
            data_dir: PathBuf::from("millrace-data"),
            engine: EngineKind::default(),
            insecure_no_auth: false,
            allowed_hosts: Vec::new(),
            connections_max: CONNECTIONS_MAX_DEFAULT,
            idle: IDLE_DEFAULT,
            stop_deadline: Duration::from_secs(10),
            scrub_bytes_per_second: LocalOptions::default().scrub_bytes_per_second,
            scrub_interval: LocalOptions::default().scrub_interval,
            cleaning_interval: CLEANING_INTERVAL_DEFAULT,
            log_format: LogFormat::default(),
            log_filter: "info".to_owned(),
            guest_log: GuestLog::default(),
            encryption_key_file: None,
            storage: StorageSizes::default(),
            memory: MemorySettings::default(),
            guests: GuestLimits::default(),
            compile_program: None,
        }
    }
}

/// The same settings, each only if somebody set it. As flags, as `MILLRACE_…` variables and as keys of the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDRESS:PORT", env = "MILLRACE_LISTEN")]
    pub listen: Option<String>,
    /// Directory for messages, modules and the compile cache [default: millrace-data]
    #[arg(long, value_name = "DIR", env = "MILLRACE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where messages are kept [default: local]
    #[arg(long, value_enum, env = "MILLRACE_ENGINE")]
    pub engine: Option<EngineKind>,
    /// Listen beyond this machine although anybody who connects may do everything
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", env = "MILLRACE_INSECURE_NO_AUTH")]
    pub insecure_no_auth: Option<bool>,
    /// Further names by which this host may be called (in Host and Origin headers), separated by commas
    #[arg(
        long = "allowed-host",
        value_name = "NAME",
        value_delimiter = ',',
        env = "MILLRACE_ALLOWED_HOSTS"
    )]
    pub allowed_hosts: Option<Vec<String>>,
    /// Connections at once, as far as the limit of open files goes [default: 1024]
    #[arg(long, value_name = "COUNT", env = "MILLRACE_CONNECTIONS_MAX")]
    pub connections_max: Option<usize>,
    /// How long a connection is kept between two requests; longer than the pools of clients and proxies keep it [default: 180000]
    #[arg(long, value_name = "MS", env = "MILLRACE_IDLE_MS")]
    pub idle_ms: Option<u64>,
    /// How long a stop may take: requests under way have all of it, guests' calls half [default: 10000]
    #[arg(long, value_name = "MS", env = "MILLRACE_STOP_DEADLINE_MS")]
    pub stop_deadline_ms: Option<u64>,
    /// Bytes a second that the background search for damage reads at the most; 0 is off [default: 20000000]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_SCRUB_BYTES_PER_SECOND")]
    pub scrub_bytes_per_second: Option<u64>,
    /// How long after one round through everything the next one begins [default: 86400]
    #[arg(long, value_name = "SECONDS", env = "MILLRACE_SCRUB_INTERVAL_S")]
    pub scrub_interval_s: Option<u64>,
    /// How often retention and compaction look for work [default: 60000]
    #[arg(long, value_name = "MS", env = "MILLRACE_CLEANING_INTERVAL_MS")]
    pub cleaning_interval_ms: Option<u64>,
    /// How log lines look [default: text]
    #[arg(long, value_enum, env = "MILLRACE_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: a level, or target=level pairs separated by commas [default: info]
    #[arg(long, value_name = "FILTER", env = "MILLRACE_LOG_FILTER")]
    pub log_filter: Option<String>,
    /// Where lines that components write go, besides `processor logs` [default: off]
    #[arg(long, value_enum, env = "MILLRACE_GUEST_LOG")]
    pub guest_log: Option<GuestLog>,
    /// Encrypt what is kept with the first key of this file (lines of ID:KEY, 64 hexadecimal digits); later keys only read. The
    /// variable MILLRACE_ENCRYPTION_KEY holds such lines themselves
    #[arg(long, value_name = "FILE", env = "MILLRACE_ENCRYPTION_KEY_FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// Bytes of one journal file, 64 KiB to 1 GiB; a transaction must fit one [default: 67108864]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_JOURNAL_FILE_BYTES")]
    pub journal_file_bytes: Option<u64>,
    /// Bytes of a segment before the next one begins, 4 KiB to 1 GiB [default: 1073741824]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_SEGMENT_BYTES")]
    pub segment_bytes: Option<u64>,
    /// Bytes of journal between two checkpoints, 64 KiB to 16 GiB; more makes recovery longer [default: a 64th of the memory, at most 128 MiB]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_CHECKPOINT_JOURNAL_BYTES")]
    pub checkpoint_journal_bytes: Option<u64>,
    /// Memory that the host may use: what it keeps in memory is bounded by shares of it [default: the machine's, or less where its
    /// control group allows less]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_MEMORY_BYTES")]
    pub memory_bytes: Option<u64>,
    /// Bytes of all delayed messages [default: a 16th of the memory, at most 1 GiB]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_DELAYED_BYTES_MAX")]
    pub delayed_bytes_max: Option<u64>,
    /// Memory for the state of all processors; what is more than that stands in files [default: three 32nds of the memory, at most 3 GiB]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_STATE_BYTES_MAX")]
    pub state_bytes_max: Option<u64>,
    /// Bytes of the state of all processors on the disk [default: half of the disk of the data directory]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_STATE_DISK_BYTES_MAX")]
    pub state_disk_bytes_max: Option<u64>,
    /// Bytes of delayed messages and state together [default: an eighth of the memory, at most 4 GiB]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_KEPT_BYTES_MAX")]
    pub kept_bytes_max: Option<u64>,
    /// Bytes of idempotency keys that are remembered; the oldest go [default: a 64th of the memory, at most 256 MiB]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_IDEMPOTENCY_BYTES_MAX")]
    pub idempotency_bytes_max: Option<u64>,
    /// Partitions of all topics together, those of processors included [default: one for each 256 KiB of the memory, for each 128 KiB from 4 GiB on, at most 200000]
    #[arg(long, value_name = "COUNT", env = "MILLRACE_PARTITIONS_MAX")]
    pub partitions_max: Option<u64>,
    /// Bytes of an uploaded module, 64 KiB to 192 MiB [default: 64 MiB, a 16th of the memory if that is less]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_MODULE_BYTES_MAX")]
    pub module_bytes_max: Option<u64>,
    /// Memory of one instance that a processor may ask for, 1 MiB to 4 GiB [default: 1 GiB, all that guests may have together if that is less]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_GUEST_MEMORY_BYTES_MAX")]
    pub guest_memory_bytes_max: Option<u64>,
    /// Elements of one table of a component, 100 to 1000000 [default: 20000]
    #[arg(long, value_name = "COUNT", env = "MILLRACE_GUEST_TABLE_ELEMENTS_MAX")]
    pub guest_table_elements_max: Option<u64>,
    /// How long an uploaded component may take to start, 10 to 600000 [default: 10000]
    #[arg(long, value_name = "MS", env = "MILLRACE_GUEST_START_MS_MAX")]
    pub guest_start_ms_max: Option<u64>,
    /// CPU time of a compile, 1 to 3600, and 5 more for each MiB of the component [default: 30]
    #[arg(long, value_name = "SECONDS", env = "MILLRACE_COMPILE_CPU_SECONDS_MAX")]
    pub compile_cpu_seconds_max: Option<u64>,
    /// Memory of the process that compiles, 32 MiB to 64 GiB [default: 2 GiB, three 32nds of the memory if that is less]
    #[arg(long, value_name = "BYTES", env = "MILLRACE_COMPILE_MEMORY_BYTES_MAX")]
    pub compile_memory_bytes_max: Option<u64>,
}

impl Settings {
    fn guests(&self, below: GuestLimits) -> GuestLimits {
        let or = |over: Option<u64>, below: u64| over.unwrap_or(below);
        GuestLimits {
            module_bytes_max: or(self.module_bytes_max, below.module_bytes_max),
            guest_memory_bytes_max: or(self.guest_memory_bytes_max, below.guest_memory_bytes_max),
            guest_table_elements_max: or(
                self.guest_table_elements_max,
                below.guest_table_elements_max,
            ),
            guest_start_ms_max: or(self.guest_start_ms_max, below.guest_start_ms_max),
            compile_cpu_seconds_max: or(
                self.compile_cpu_seconds_max,
                below.compile_cpu_seconds_max,
            ),
            compile_memory_bytes_max: or(
                self.compile_memory_bytes_max,
                below.compile_memory_bytes_max,
            ),
        }
    }
}

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
        key: &'static str,
        /// The text's length.
        value: String,
        /// The rule.
        why: String,
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

impl Config {
    /// Puts the settings over those of the file over the defaults, and checks what comes out.
    ///
    /// # Errors
    /// [`ConfigError`] says which setting, where it stands and what would be right.
    pub fn load(settings: Settings, file: Option<&Path>) -> Result<Self, ConfigError> {
        let from_file = file.map_or_else(|| Ok(Settings::default()), read_file)?;
        let config = Self::default().with(from_file).with(settings);
        config.check()?;
        Ok(config)
    }

    fn with(self, over: Settings) -> Self {
        let storage = self.storage.with(&over);
        let memory = with_memory(self.memory, &over);
        let guests = over.guests(self.guests);
        Self {
            storage,
            memory,
            guests,
            listen: over.listen.unwrap_or(self.listen),
            data_dir: over.data_dir.unwrap_or(self.data_dir),
            engine: over.engine.unwrap_or(self.engine),
            insecure_no_auth: over.insecure_no_auth.unwrap_or(self.insecure_no_auth),
            allowed_hosts: over.allowed_hosts.unwrap_or(self.allowed_hosts),
            connections_max: over.connections_max.unwrap_or(self.connections_max),
            idle: over.idle_ms.map_or(self.idle, Duration::from_millis),
            stop_deadline: over
                .stop_deadline_ms
                .map_or(self.stop_deadline, Duration::from_millis),
            scrub_bytes_per_second: over
                .scrub_bytes_per_second
                .unwrap_or(self.scrub_bytes_per_second),
            scrub_interval: over
                .scrub_interval_s
                .map_or(self.scrub_interval, Duration::from_secs),
            cleaning_interval: over
                .cleaning_interval_ms
                .map_or(self.cleaning_interval, Duration::from_millis),
            log_format: over.log_format.unwrap_or(self.log_format),
            log_filter: over.log_filter.unwrap_or(self.log_filter),
            guest_log: over.guest_log.unwrap_or(self.guest_log),
            encryption_key_file: over.encryption_key_file.or(self.encryption_key_file),
            compile_program: self.compile_program,
        }
    }

    /// Checks what can be checked before anything is opened; also what keeps strangers out.
    ///
    /// # Errors
    /// [`ConfigError::Value`], [`ConfigError::Exposed`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.data_dir.as_os_str().is_empty() || self.data_dir == Path::new("/") {
            let value = self.data_dir.display().to_string();
            return Err(refused("data_dir", value, "name a directory of its own"));
        }
        if self.connections_max == 0 {
            return Err(refused("connections_max", "0", "at least 1"));
        }
        let idle_ms = self.idle.as_millis();
        if !(1_000..=u128::from(IDLE_MS_MAX)).contains(&idle_ms) {
            let why = format!("between 1000 and {IDLE_MS_MAX}");
            return Err(refused("idle_ms", idle_ms.to_string(), &why));
        }
        self.storage.check()?;
        check_memory(&self.memory)?;
        if let Some((key, value, from, to)) = self.guests.out_of_bounds() {
            let why = format!("it goes from {from} to {to}");
            return Err(refused(key, value.to_string(), &why));
        }
        if self.cleaning_interval.is_zero() {
            return Err(refused("cleaning_interval_ms", "0", "at least 1"));
        }
        let addresses = self.addresses()?;
        if !self.insecure_no_auth && addresses.iter().any(|a| !a.ip().is_loopback()) {
            let listen = self.listen.clone();
            return Err(ConfigError::Exposed { listen });
        }
        Ok(())
    }

    /// Whether keys for encryption are given.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        let variable = std::env::var_os(KEY_VARIABLE);
        self.encryption_key_file.is_some() || variable.is_some_and(|keys| !keys.is_empty())
    }

    /// What `listen` means, resolved.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where it names nothing.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let why = "write ADDRESS:PORT, such as 127.0.0.1:7400";
        let found = self.listen.to_socket_addrs();
        let found: Vec<SocketAddr> = found
            .map_err(|error| refused("listen", &*self.listen, &format!("{error}; {why}")))?
            .collect();
        if found.is_empty() {
            return Err(refused("listen", &*self.listen, why));
        }
        Ok(found)
    }
}

/// The least memory that a host can be run with.
const MEMORY_BYTES_LEAST: u64 = 64 << 20;

fn with_memory(memory: MemorySettings, over: &Settings) -> MemorySettings {
    MemorySettings {
        memory_bytes: over.memory_bytes.or(memory.memory_bytes),
        delayed_bytes_max: over.delayed_bytes_max.or(memory.delayed_bytes_max),
        state_bytes_max: over.state_bytes_max.or(memory.state_bytes_max),
        state_disk_bytes_max: over.state_disk_bytes_max.or(memory.state_disk_bytes_max),
        kept_bytes_max: over.kept_bytes_max.or(memory.kept_bytes_max),
        idempotency_bytes_max: over.idempotency_bytes_max.or(memory.idempotency_bytes_max),
        partitions_max: over.partitions_max.or(memory.partitions_max),
    }
}

fn check_memory(memory: &MemorySettings) -> Result<(), ConfigError> {
    let least = MEMORY_BYTES_LEAST;
    match memory.memory_bytes.filter(|bytes| *bytes < least) {
        Some(bytes) => {
            let why = format!("at least {least} bytes");
            Err(refused("memory_bytes", bytes.to_string(), &why))
        }
        None => Ok(()),
    }
}

/// The encryption keys of the file, or of [`KEY_VARIABLE`]; `None` where neither is given.
///
/// # Errors
/// [`ConfigError::Keys`], [`ConfigError::KeysTwice`]; neither shows a key.
pub fn encryption_keys(file: Option<&Path>) -> Result<Option<Arc<Cipher>>, ConfigError> {
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

fn refused(key: &'static str, value: impl Into<String>, why: &str) -> ConfigError {
    ConfigError::Value {
        key,
        value: value.into(),
        why: why.to_owned(),
    }
}

fn read_file(path: &Path) -> Result<Settings, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        let why = std::io::Error::other(format!("{bytes} bytes, at most {FILE_BYTES_MAX}"));
        return Err(unreadable(why));
    }
    let read = std::fs::read(path).map_err(unreadable)?;
    let text = crate::text::whole(&read);
    let text = text.map_err(|why| unreadable(std::io::Error::other(why)))?;
    toml::from_str(text).map_err(|error| not_understood(path, text, &error))
}

fn not_understood(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let before = text.get(..error.span().map_or(0, |span| span.start));
    let hint = hint_of(error.message()).or_else(|| {
        // What the parser takes for a number or a date is mostly a text without quotes.
        let is_syntax = error.message().starts_with("invalid") && !error.message().contains("type");
        is_syntax.then(|| {
            "write texts in quotes, as listen = \"127.0.0.1:7400\", and numbers without".to_owned()
        })
    });
    let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
    ConfigError::File {
        path: path.to_owned(),
        line: before.unwrap_or_default().matches('\n').count() + 1,
        message: format!("{}{hint}", in_plain_words(error.message())),
    }
}

/// Variables that begin with `MILLRACE_` and mean nothing here. They are warned about, not refused: container platforms
/// set such variables by themselves for a service of that name.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let known = known_variables();
    names
        .into_iter()
        .filter(|name| name.starts_with("MILLRACE_") && !known.contains(name))
        .collect()
}

fn known_variables() -> Vec<String> {
    let command = Settings::augment_args(clap::Command::new("settings"));
    let of_settings = command
        .get_arguments()
        .filter_map(|argument| argument.get_env().and_then(|name| name.to_str()));
    let others = ["MILLRACE_CONFIG", "MILLRACE_HOST", KEY_VARIABLE];
    of_settings.chain(others).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, settings: Settings) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("millrace.toml");
        std::fs::write(&path, file).expect("a file");
        Config::load(settings, Some(&path))
    }

    #[test]
    fn settings_go_before_the_file_and_the_file_before_the_defaults() {
        let settings = Settings {
            listen: Some("127.0.0.1:9".to_owned()),
            ..Settings::default()
        };
        let file = "listen = '127.0.0.1:8'\nengine = 'memory'\n";
        let config = load(file, settings).expect("a configuration");
        assert_eq!(config.listen, "127.0.0.1:9");
        assert_eq!(config.engine, EngineKind::Memory);
        assert_eq!(config.data_dir, Config::default().data_dir);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_right_name() {
        let error = load("engine = 'memory'\n\ndata_dri = 'x'\n", Settings::default());
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("millrace.toml:3: "), "{text}");
        assert!(text.contains("did you mean `data_dir`?"), "{text}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_with_its_line() {
        let error = load("listen = 7400\n", Settings::default()).expect_err("refused");
        assert!(error.to_string().contains("millrace.toml:1: "), "{error}");
        let error = load("\nengine = 'locl'\n", Settings::default()).expect_err("refused");
        let text = error.to_string();
        assert!(text.contains(":2: ") && text.contains("`local`"), "{text}");
    }

    #[test]
    fn an_address_that_others_reach_is_refused_unless_said_to_be_meant() {
        let exposed = Settings {
            listen: Some("0.0.0.0:0".to_owned()),
            ..Settings::default()
        };
        let error = load("", exposed.clone()).expect_err("refused");
        assert!(error.to_string().contains("--insecure-no-auth"), "{error}");
        load("insecure_no_auth = true", exposed).expect("meant");
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        for file in [
            "listen = 'nowhere'",
            "listen = '127.0.0.1:70000'",
            "data_dir = '/'",
            "data_dir = ''",
            "connections_max = 0",
            "connections_max = -1",
            "idle_ms = 10",
            "idle_ms = 100000000",
            "journal_file_bytes = 1000",
            "segment_bytes = 1000",
            "checkpoint_journal_bytes = 0",
            "memory_bytes = 1000",
            "kept_bytes_max = -1",
            "module_bytes_max = 1",
            "guest_memory_bytes_max = 5000000000",
            "compile_cpu_seconds_max = 0",
        ] {
            load(file, Settings::default()).expect_err(file);
        }
    }

    #[test]
    fn variables_that_mean_nothing_are_found() {
        let names = [
            "MILLRACE_LISTEN",
            "MILLRACE_HOST",
            "MILLRACE_LISTNE",
            "PATH",
        ];
        let unknown = unknown_variables(names.map(str::to_owned));
        assert_eq!(unknown, ["MILLRACE_LISTNE"]);
    }
}
