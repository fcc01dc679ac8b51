//! The engine: its settings, and how it is opened.

mod jetstream;
pub(crate) mod place;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use millrace_engine::{Engine, MemoryEngine};
use millrace_jetstream::JetstreamEngine;
use millrace_local::Cipher;
use millrace_local::{LocalEngine, LocalOptions, OpenError};
use millrace_model::Clock;
use millrace_postgres::{PostgresEngine, PostgresOptions};
use serde::{Deserialize, Serialize};

use self::jetstream::JetstreamSettings;
use crate::config::error::{ConfigError, refused};
use crate::memory::MemoryPlan;

/// Where data is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// In the data directory.
    #[default]
    Local,
    /// In memory only; lost when the process ends.
    Memory,
    /// In a PostgreSQL database, which several hosts may share.
    Postgres,
    /// In a stream of NATS JetStream, which several hosts may share.
    Jetstream,
}

/// `[engine]`: which engine stores data, and the settings of each.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Where messages are stored: in the data directory, only in memory, in a PostgreSQL database, or
    /// in a stream of NATS JetStream [default: local]
    #[arg(long = "engine", id = "engine.kind", value_name = "ENGINE", value_enum)]
    pub kind: EngineKind,
    /// Address at which other hosts on the same store, and clients, reach this host; empty if they
    /// cannot [default: the HTTP door's]
    #[arg(long = "advertise", id = "engine.advertise", value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// The local engine.
    #[command(flatten)]
    pub local: LocalSettings,
    /// The engine on PostgreSQL.
    #[command(flatten)]
    pub postgres: PostgresSettings,
    /// The engine on NATS JetStream.
    #[command(flatten)]
    pub jetstream: JetstreamSettings,
}

/// `[engine.postgres]`: the database, and how this host uses it.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSettings {
    /// Address of the database, like postgres://user@host:5432/database. With a password in it, set
    /// it by variable or file: every user of a machine can see its command lines
    #[arg(long = "postgres-url", id = "engine.postgres.url", value_name = "URL")]
    #[serde(serialize_with = "without_password")]
    pub url: String,
    /// Schema that holds everything; created if it does not exist [default: millrace]
    #[arg(
        long = "postgres-schema",
        id = "engine.postgres.schema",
        value_name = "NAME"
    )]
    pub schema: String,
    /// Connections for reads and administration, besides a few for commits [default: 8]
    #[arg(
        long = "postgres-connections-max",
        id = "engine.postgres.connections_max",
        value_name = "COUNT"
    )]
    pub connections_max: u32,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        let options = PostgresOptions::default();
        Self {
            url: options.url,
            schema: options.schema,
            connections_max: options.connections_max,
        }
    }
}

fn without_password<S: serde::Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown(url))
}

/// An address as lists of settings show it: without its password, and without its parameters, which may have one too.
pub(crate) fn shown(address: &str) -> String {
    let (url, parameters) = address.split_once('?').unwrap_or((address, ""));
    let Some((scheme, rest)) = url.split_once("://") else {
        return String::new();
    };
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}")
        }
        // What looks like a host may be the user, and what follows a password with a question mark in it.
        None if !rest.contains('/') && parameters.contains('@') => {
            let user = rest.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}")
        }
        None => format!("{scheme}://{rest}"),
    }
}

/// A text that is not understood, in quotes. One that may have a password in it is not shown.
pub(crate) fn quoted(text: &str) -> String {
    let is_secret = text.contains(['@', '?', '=', '#']) || text.contains(char::is_whitespace);
    match is_secret {
        true => "this".to_owned(),
        false => format!("{text:?}"),
    }
}

impl EngineSettings {
    /// The address that other hosts get, if it is set and not empty; `ADDRESS:PORT` without more.
    pub(crate) fn advertised(&self) -> Option<&str> {
        let address = match self.kind {
            EngineKind::Postgres | EngineKind::Jetstream => self.advertise.as_deref()?,
            EngineKind::Local | EngineKind::Memory => return None,
        };
        let bare = address
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let bare = bare.trim_end_matches('/');
        (!bare.is_empty()).then_some(bare)
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.local.check()?;
        self.postgres.check()?;
        self.jetstream.check(self.kind == EngineKind::Jetstream)?;
        if self.kind == EngineKind::Postgres && self.postgres.url.is_empty() {
            let why = "the address of the database, such as postgres://user@host:5432/database";
            return Err(refused("engine.postgres.url", "", why));
        }
        let schemes = ["postgres://", "postgresql://"];
        let url = &self.postgres.url;
        if self.kind == EngineKind::Postgres
            && !schemes.iter().any(|scheme| url.starts_with(scheme))
        {
            let why =
                "the address of a PostgreSQL database, such as postgres://user@host:5432/database";
            return Err(refused("engine.postgres.url", shown(url), why));
        }
        Ok(())
    }
}

impl PostgresSettings {
    fn check(&self) -> Result<(), ConfigError> {
        match self.connections_max {
            2..=1000 => Ok(()),
            count => Err(refused(
                "engine.postgres.connections_max",
                count.to_string(),
                "between 2 and 1000",
            )),
        }
    }

    /// `address` is that for other hosts, empty if they need not ask this one.
    fn options(&self, memory: &MemoryPlan, address: String) -> PostgresOptions {
        PostgresOptions {
            url: self.url.clone(),
            schema: self.schema.clone(),
            connections_max: self.connections_max,
            address,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            bounds: memory.bounds,
            ..PostgresOptions::default()
        }
    }
}

/// The address for other hosts. One that stands for all addresses of this machine leads other machines to themselves.
fn address_for_others(advertised: Option<&str>, door: SocketAddr, is_encrypted: bool) -> String {
    let scheme = if is_encrypted { "https://" } else { "" };
    match advertised {
        Some(address) if address.is_empty() || address.contains("://") => address.to_owned(),
        Some(address) => format!("{scheme}{address}"),
        None if door.ip().is_unspecified() => {
            tracing::warn!(
                listen = %door,
                "other hosts cannot ask this one what it counts, because it listens on all addresses and none is set for them; set --advertise ADDRESS:PORT"
            );
            String::new()
        }
        None => format!("{scheme}{door}"),
    }
}

/// `[engine.local]`: sizes and times of the local engine. Small sizes make a host roll segments,
/// checkpoint and reuse files often. They suit small machines, and tests that provoke in minutes
/// what otherwise takes months.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalSettings {
    /// Size of a journal file in bytes, 64 KiB to 1 GiB; a transaction must fit into one [default:
    /// 67108864]
    #[arg(long, id = "engine.local.journal_file_bytes", value_name = "BYTES")]
    pub journal_file_bytes: u64,
    /// Size in bytes at which a segment ends and the next one begins, 4 KiB to 1 GiB [default:
    /// 1073741824]
    #[arg(long, id = "engine.local.segment_bytes", value_name = "BYTES")]
    pub segment_bytes: u64,
    /// Bytes of journal between two checkpoints, 64 KiB to 16 GiB; more makes recovery longer [default: a 64th of the memory, at most 128 MiB]
    #[arg(
        long,
        id = "engine.local.checkpoint_journal_bytes",
        value_name = "BYTES"
    )]
    pub checkpoint_journal_bytes: Option<u64>,
    /// Maximum bytes per second that the background search for damage reads; 0 turns it off
    /// [default: 20000000]
    #[arg(long, id = "engine.local.scrub_bytes_per_second", value_name = "BYTES")]
    pub scrub_bytes_per_second: u64,
    /// Shortest time from the end of a round of the background search for damage to the start of
    /// the next [default: 86400]
    #[arg(long, id = "engine.local.scrub_interval_s", value_name = "SECONDS")]
    pub scrub_interval_s: u64,
    /// How often retention and compaction check every partition [default: 60000]
    #[arg(long, id = "engine.local.cleaning_interval_ms", value_name = "MS")]
    pub cleaning_interval_ms: u64,
}

impl Default for LocalSettings {
    fn default() -> Self {
        let options = LocalOptions::default();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            journal_file_bytes: options.journal_file_bytes,
            segment_bytes: options.segment_bytes,
            checkpoint_journal_bytes: None,
            scrub_bytes_per_second: options.scrub_bytes_per_second,
            scrub_interval_s: options.scrub_interval.as_secs(),
            cleaning_interval_ms: ms(options.cleaning_interval),
        }
    }
}

impl LocalSettings {
    fn check(&self) -> Result<(), ConfigError> {
        let journal = self.checkpoint_journal_bytes.unwrap_or(64 << 10);
        // The range of each size, both ends inclusive.
        for (key, size, from, to) in [
            (
                "journal_file_bytes",
                self.journal_file_bytes,
                64 << 10,
                1 << 30,
            ),
            ("segment_bytes", self.segment_bytes, 4 << 10, 1 << 30),
            ("checkpoint_journal_bytes", journal, 64 << 10, 16 << 30),
        ] {
            if !(from..=to).contains(&size) {
                let why = format!("between {from} and {to} bytes");
                let key = format!("engine.local.{key}");
                return Err(refused(key, size.to_string(), why));
            }
        }
        match self.cleaning_interval_ms {
            0 => Err(refused(
                "engine.local.cleaning_interval_ms",
                "0",
                "at least 1",
            )),
            _ => Ok(()),
        }
    }

    fn options(&self, memory: &MemoryPlan, encryption: Option<Arc<Cipher>>) -> LocalOptions {
        LocalOptions {
            journal_file_bytes: self.journal_file_bytes,
            segment_bytes: self.segment_bytes,
            checkpoint_journal_bytes: self
                .checkpoint_journal_bytes
                .unwrap_or(memory.journal_bytes),
            scrub_bytes_per_second: self.scrub_bytes_per_second,
            scrub_interval: Duration::from_secs(self.scrub_interval_s),
            cleaning_interval: Duration::from_millis(self.cleaning_interval_ms),
            encryption,
            tail_bytes_max: memory.tail_bytes,
            queue_bytes_max: memory.queue_bytes,
            bounds: memory.bounds,
            ..LocalOptions::default()
        }
    }
}

/// Why no engine was opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotOpened {
    #[error(transparent)]
    Local(#[from] OpenError),
    #[error(transparent)]
    Postgres(#[from] millrace_postgres::OpenError),
    #[error(transparent)]
    Jetstream(#[from] millrace_jetstream::OpenError),
    #[error("{0}")]
    Credentials(String),
    #[error(
        "a shared store is not encrypted by this host; remove the encryption key from the settings, and encrypt the disks of its servers instead"
    )]
    Encryption,
}

/// Opens the engine that is configured.
pub(crate) async fn open(
    settings: &EngineSettings,
    data_dir: &Path,
    (door, is_encrypted): (SocketAddr, bool),
    encryption: Option<Arc<Cipher>>,
    memory: &MemoryPlan,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn Engine>, NotOpened> {
    match settings.kind {
        EngineKind::Memory => Ok(MemoryEngine::bounded(clock.clone(), memory.bounds)),
        EngineKind::Local => {
            warn_of_strangers(data_dir);
            let options = settings.local.options(memory, encryption);
            Ok(LocalEngine::open(data_dir, options, clock.clone()).await?)
        }
        EngineKind::Postgres | EngineKind::Jetstream if encryption.is_some() => {
            Err(NotOpened::Encryption)
        }
        EngineKind::Postgres => {
            let address = address_for_others(settings.advertise.as_deref(), door, is_encrypted);
            let options = settings.postgres.options(memory, address);
            // Boxed: it would make every future that starts a host large.
            Ok(Box::pin(PostgresEngine::open(options, clock.clone())).await?)
        }
        EngineKind::Jetstream => {
            let address = address_for_others(settings.advertise.as_deref(), door, is_encrypted);
            if !settings.jetstream.synced {
                tracing::warn!(
                    "topics are `durable` by default, and are refused until the servers run with sync_interval: always and engine.jetstream.synced is true; until then, create them with another durability"
                );
            }
            let options = settings.jetstream.options(memory, address);
            let options = options.map_err(NotOpened::Credentials)?;
            Ok(Box::pin(JetstreamEngine::open(options, clock.clone())).await?)
        }
    }
}

/// A directory that contains files, but none of ours, is probably meant for something else.
fn warn_of_strangers(data_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(data_dir) else {
        return;
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let is_ours = ["journal", "checkpoint.sqlite"].map(|own| names.iter().any(|name| name == own));
    let first = names.iter().find(|name| *name != "lock");
    if let (Some(first), [false, false]) = (first, is_ours) {
        tracing::warn!(
            data_dir = %data_dir.display(), first,
            "the data directory holds files of others; Millrace leaves them alone and puts its own beside them. Is --data-dir right?"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_quoted_only_if_it_can_have_no_password() {
        assert_eq!(quoted("millrace-data"), "\"millrace-data\"");
        for text in [
            "nats://ada:s3cret@db",
            "mysql://db/q?password=s3cret",
            "host=db password=s3cret",
            "postgres:// s3cret",
            "s3cret#",
        ] {
            assert_eq!(quoted(text), "this");
        }
    }

    #[test]
    fn the_address_of_another_kind_of_store_is_refused_without_its_password() {
        let of = |url: &str| {
            let mut settings = EngineSettings {
                kind: EngineKind::Postgres,
                ..EngineSettings::default()
            };
            settings.postgres.url = url.to_owned();
            let refused = settings.check().err();
            refused.map(|error| error.to_string()).unwrap_or_default()
        };
        for url in ["mysql://ada:s3cret@db/q", "ada:s3cret@db/q"] {
            let told = of(url);
            assert!(told.contains("such as postgres://user@host"), "{told}");
            assert!(!told.contains("s3cret"), "{told}");
        }
        assert_eq!(of("postgres://ada:s3cret@db/q"), "");
        assert_eq!(of("postgresql://db/q"), "");
    }

    #[test]
    fn the_address_for_others_is_that_of_every_engine_with_others() {
        let of = |kind, advertise: &str| EngineSettings {
            kind,
            advertise: Some(advertise.to_owned()),
            ..EngineSettings::default()
        };
        for kind in [EngineKind::Postgres, EngineKind::Jetstream] {
            assert_eq!(of(kind, "http://a:1/").advertised(), Some("a:1"));
            assert_eq!(of(kind, "").advertised(), None);
        }
        assert_eq!(of(EngineKind::Local, "a:1").advertised(), None);
    }

    #[test]
    fn the_password_of_a_database_is_in_no_list() {
        for (url, expected) in [
            (
                "postgres://ada:s3cret@db:5432/q",
                "postgres://ada@db:5432/q",
            ),
            ("postgres://ada:s3@cret@db/q?a=b", "postgres://ada@db/q"),
            ("postgres://db/q?password=s3cret", "postgres://db/q"),
            (
                "postgres://ada@db/q?sslpassword=s3cret@x",
                "postgres://ada@db/q",
            ),
            ("postgres://ada:s3?cret@db/q", "postgres://ada"),
            ("postgres://db:5432/q?a=b@c", "postgres://db:5432/q"),
            ("http://ada:s3cret@db:8222", "http://ada@db:8222"),
            ("s3cret", ""),
            ("", ""),
        ] {
            assert_eq!(shown(url), expected);
        }
    }
}
