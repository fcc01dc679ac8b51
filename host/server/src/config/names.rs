//! How settings are spelled: the path of a setting, its environment variable, and the old spelling
//! of both, from before there were sections.
//!
//! Old spellings still work, with a hint. Both spellings at once are refused, because it would be
//! unclear which one is meant.

use std::path::{Path, PathBuf};

use serde::Serializer;

/// The variable that may hold encryption keys instead of a file. There is no flag, because every
/// user can see a command line.
pub(crate) const KEY_VARIABLE: &str = "MILLRACE_ENCRYPTION_KEY";

/// Variables with this prefix are secrets of components: `api-key` is `MILLRACE_SECRET_API_KEY`.
pub(crate) const SECRET_PREFIX: &str = "MILLRACE_SECRET_";

/// The prefix of the host's variables.
pub(super) const PREFIX: &str = "MILLRACE_";

/// Keys from before there were sections, and their current paths.
pub(super) const RETIRED: [(&str, &str); 29] = [
    ("listen", "listen.http.address"),
    ("allowed_hosts", "listen.http.allowed_hosts"),
    ("connections_max", "listen.http.connections_max"),
    ("idle_ms", "listen.http.idle_ms"),
    ("insecure_no_auth", "listen.insecure_no_auth"),
    ("engine", "engine.kind"),
    ("journal_file_bytes", "engine.local.journal_file_bytes"),
    ("segment_bytes", "engine.local.segment_bytes"),
    (
        "checkpoint_journal_bytes",
        "engine.local.checkpoint_journal_bytes",
    ),
    (
        "scrub_bytes_per_second",
        "engine.local.scrub_bytes_per_second",
    ),
    ("scrub_interval_s", "engine.local.scrub_interval_s"),
    ("cleaning_interval_ms", "engine.local.cleaning_interval_ms"),
    ("encryption_key_file", "encryption.key_file"),
    ("log_format", "log.format"),
    ("log_filter", "log.filter"),
    ("guest_log", "log.guests"),
    ("memory_bytes", "limits.memory_bytes"),
    ("delayed_bytes_max", "limits.delayed_bytes_max"),
    ("state_bytes_max", "limits.state_bytes_max"),
    ("state_disk_bytes_max", "limits.state_disk_bytes_max"),
    ("kept_bytes_max", "limits.kept_bytes_max"),
    ("idempotency_bytes_max", "limits.idempotency_bytes_max"),
    ("partitions_max", "limits.partitions_max"),
    ("module_bytes_max", "modules.module_bytes_max"),
    ("guest_memory_bytes_max", "modules.guest_memory_bytes_max"),
    (
        "guest_table_elements_max",
        "modules.guest_table_elements_max",
    ),
    ("guest_start_ms_max", "modules.guest_start_ms_max"),
    ("compile_cpu_seconds_max", "modules.compile_cpu_seconds_max"),
    (
        "compile_memory_bytes_max",
        "modules.compile_memory_bytes_max",
    ),
];

/// The variable of a setting: `listen.http.address` is `MILLRACE_LISTEN_HTTP_ADDRESS`.
pub(super) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

/// The old variable of a setting, if its name was different.
pub(super) fn old_variable(path: &str) -> Option<String> {
    let (old, _) = RETIRED.iter().find(|(_, new)| *new == path)?;
    let old = variable(old);
    (old != variable(path)).then_some(old)
}

/// Every variable of a setting, in the current and the old spelling.
pub(super) fn variables(path: &str) -> impl Iterator<Item = String> {
    [Some(variable(path)), old_variable(path)]
        .into_iter()
        .flatten()
}

/// The variable that is read for a setting: the current one, unless only the old one is set.
pub(super) fn variable_read(path: &str, is_set: impl Fn(&str) -> bool) -> String {
    let new = variable(path);
    match old_variable(path) {
        Some(old) if is_set(&old) && !is_set(&new) => old,
        _ => new,
    }
}

/// Whether the process has this variable.
pub(super) fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some()
}

/// Serializes a path for lists of settings; it need not be valid text.
pub(crate) fn shown<S: Serializer>(
    path: impl AsRef<Path>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.as_ref().to_string_lossy())
}

/// The same for a path that may be absent.
pub(crate) fn maybe_shown<S: Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => shown(path, serializer),
        None => serializer.serialize_none(),
    }
}
