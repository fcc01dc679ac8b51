//! How settings are spelt: the path of a setting, its environment variable, and how both were spelt before there were sections.
//!
//! The old spellings are read as the new ones, with a hint. Both at once are refused: nobody could say which is meant.

use std::path::Path;

use serde::Serializer;

/// The variable that may hold encryption keys instead of a file. No flag: a command line is seen by everybody.
pub(crate) const KEY_VARIABLE: &str = "MILLRACE_ENCRYPTION_KEY";

/// What the names of the host's variables begin with.
pub(super) const PREFIX: &str = "MILLRACE_";

/// Keys as they were spelt before there were sections, and their paths now.
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

/// The variable by which a setting was given before, if it had another one.
pub(super) fn old_variable(path: &str) -> Option<String> {
    let (old, _) = RETIRED.iter().find(|(_, new)| *new == path)?;
    let old = variable(old);
    (old != variable(path)).then_some(old)
}

/// Every variable of a setting, as it is spelt and as it was.
pub(super) fn variables(path: &str) -> impl Iterator<Item = String> {
    [Some(variable(path)), old_variable(path)]
        .into_iter()
        .flatten()
}

/// The variable of a setting that is read: as it is spelt, unless only the old one is there.
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

/// A path as it is shown where settings are listed: some are not text.
pub(crate) fn shown<S: Serializer>(
    path: impl AsRef<Path>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.as_ref().to_string_lossy())
}
