//! An engine and where its data is, in a word: how `millrace copy` and `millrace doctor` name a store without a host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Engine;
use millrace_jetstream::{JetstreamEngine, JetstreamOptions};
use millrace_local::{Cipher, LocalEngine, LocalOptions};
use millrace_model::Clock;
use millrace_postgres::{PostgresEngine, PostgresOptions};

use super::jetstream::JetstreamSettings;
use super::{EngineKind, EngineSettings, NotOpened, PostgresSettings, quoted, shown};
use crate::config::{Config, ConfigError, MemorySettings};

/// What a place is like, for those who name none.
pub(crate) const PLACES: &str =
    "local:DIR, postgres://user@host:5432/database#schema, nats://host:4222#stream, or config:FILE";
/// Nothing is removed from a store without a host: who reads it must find the same at the end as at the beginning.
const CLEANING_INTERVAL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where an engine keeps its data.
#[derive(Debug)]
pub(crate) struct Place {
    settings: EngineSettings,
    data_dir: PathBuf,
    limits: MemorySettings,
    encryption: Option<Arc<Cipher>>,
}

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("{0} names no store; write {PLACES}")]
    Unknown(String),
    #[error("the address cannot be read: a # in a password is written %23")]
    Hash,
    #[error("the memory engine ends with its host, so there is nothing to name")]
    Memory,
    #[error("{} is no data directory of Millrace", .0.display())]
    NoDirectory(PathBuf),
    #[error("{} has files of others in it", .0.display())]
    Strangers(PathBuf),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    NotOpened(#[from] NotOpened),
}

impl Place {
    /// Reads a place, such as `local:millrace-data`.
    pub(crate) fn parse(text: &str) -> Result<Self, PlaceError> {
        let unknown = || PlaceError::Unknown(quoted(text));
        let (kind, rest) = text.split_once(':').ok_or_else(unknown)?;
        let mut place = Self {
            settings: EngineSettings::default(),
            data_dir: PathBuf::new(),
            limits: MemorySettings::default(),
            encryption: None,
        };
        match kind {
            _ if rest.is_empty() => return Err(unknown()),
            "local" => place.data_dir = rest.into(),
            "postgres" | "postgresql" => {
                let (url, schema) = parted(text)?;
                let schema = schema.map(str::to_owned);
                place.settings.kind = EngineKind::Postgres;
                place.settings.postgres.url = url.to_owned();
                place.settings.postgres.schema =
                    schema.unwrap_or_else(|| PostgresSettings::default().schema);
            }
            "nats" | "tls" => {
                let (urls, stream) = parted(text)?;
                let stream = stream.map(str::to_owned);
                place.settings.kind = EngineKind::Jetstream;
                place.settings.jetstream.urls = urls.split(',').map(str::to_owned).collect();
                place.settings.jetstream.stream =
                    stream.unwrap_or_else(|| JetstreamSettings::default().stream);
            }
            "config" => {
                let config = Config::of_file(Path::new(rest))?;
                if config.engine.kind == EngineKind::Memory {
                    return Err(PlaceError::Memory);
                }
                place.encryption = config.encryption.keys()?;
                place.settings = config.engine;
                place.data_dir = config.data_dir;
                place.limits = config.limits;
            }
            _ => return Err(unknown()),
        }
        Ok(place)
    }

    /// The same with the keys of an encrypted data directory.
    pub(crate) fn with_keys(mut self, file: Option<&Path>) -> Result<Self, PlaceError> {
        if let Some(file) = file {
            let cipher = Cipher::from_file(file).map_err(ConfigError::from)?;
            self.encryption = Some(Arc::new(cipher));
        }
        Ok(self)
    }

    /// Whether a text names its engine, unlike the path of a data directory.
    pub(crate) fn is_one(text: &str) -> bool {
        let kind = text.split_once(':').map(|(kind, _)| kind);
        matches!(
            kind,
            Some("local" | "postgres" | "postgresql" | "nats" | "tls" | "config")
        )
    }

    /// Its data directory, if it is one.
    pub(crate) fn directory(&self) -> &Path {
        &self.data_dir
    }

    /// The keys that were given for it.
    pub(crate) fn keys(&self) -> Option<Arc<Cipher>> {
        self.encryption.clone()
    }

    /// How its database is reached, if it is one.
    pub(crate) fn database_options(&self) -> Option<PostgresOptions> {
        self.database()?;
        let memory = self.limits.plan();
        Some(self.settings.postgres.options(&memory, String::new()))
    }

    /// Its engine.
    pub(crate) fn kind(&self) -> EngineKind {
        self.settings.kind
    }

    /// The database and its schema, if it is one.
    pub(crate) fn database(&self) -> Option<(&str, &str)> {
        let PostgresSettings { url, schema, .. } = &self.settings.postgres;
        (self.kind() == EngineKind::Postgres).then_some((url, schema))
    }

    /// For people, without a password. The same store always has the same name.
    pub(crate) fn name(&self) -> String {
        if let Some((url, schema)) = self.database() {
            return format!("{}#{schema}", shown(url));
        }
        if self.kind() != EngineKind::Jetstream {
            return format!("local:{}", whole(&self.data_dir).display());
        }
        let JetstreamSettings { urls, stream, .. } = &self.settings.jetstream;
        let mut urls: Vec<String> = urls.iter().map(|url| shown(url)).collect();
        urls.sort_unstable();
        format!("{}#{stream}", urls.join(","))
    }

    /// Whether both are the same store.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.database() == other.database() && self.name() == other.name()
    }

    /// Whether one is a directory within the other. A data directory has no place for another.
    pub(crate) fn is_nested(&self, other: &Self) -> bool {
        if [self, other].map(Self::kind) != [EngineKind::Local; 2] {
            return false;
        }
        let (own, others) = (whole(&self.data_dir), whole(&other.data_dir));
        own != others && (own.starts_with(&others) || others.starts_with(&own))
    }

    /// Opens what is there.
    pub(crate) async fn open(&self, clock: &Arc<dyn Clock>) -> Result<Arc<dyn Engine>, PlaceError> {
        let dir = &self.data_dir;
        if self.kind() == EngineKind::Local && !is_data_directory(dir) {
            return Err(PlaceError::NoDirectory(dir.clone()));
        }
        self.open_any(clock, false).await
    }

    /// Opens it, and makes it if it does not exist.
    pub(crate) async fn open_or_make(
        &self,
        clock: &Arc<dyn Clock>,
    ) -> Result<Arc<dyn Engine>, PlaceError> {
        let dir = &self.data_dir;
        if self.kind() == EngineKind::Local && !is_data_directory(dir) && !is_empty(dir) {
            return Err(PlaceError::Strangers(dir.clone()));
        }
        self.open_any(clock, true).await
    }

    async fn open_any(
        &self,
        clock: &Arc<dyn Clock>,
        makes: bool,
    ) -> Result<Arc<dyn Engine>, PlaceError> {
        let memory = self.limits.plan();
        let (clock, encryption) = (clock.clone(), self.encryption.clone());
        match self.kind() {
            EngineKind::Memory => Err(PlaceError::Memory),
            EngineKind::Local => {
                let options = LocalOptions {
                    cleaning_interval: CLEANING_INTERVAL,
                    scrub_bytes_per_second: 0,
                    ..self.settings.local.options(&memory, encryption)
                };
                let opened = LocalEngine::open(&self.data_dir, options, clock).await;
                Ok(opened.map_err(NotOpened::from)?)
            }
            EngineKind::Postgres | EngineKind::Jetstream if encryption.is_some() => {
                Err(NotOpened::Encryption.into())
            }
            EngineKind::Jetstream => {
                let options = self.settings.jetstream.options(&memory, String::new());
                let options = JetstreamOptions {
                    cleaning_interval: CLEANING_INTERVAL,
                    makes_stream: makes,
                    ..options.map_err(NotOpened::Credentials)?
                };
                let opened = Box::pin(JetstreamEngine::open(options, clock)).await;
                Ok(opened.map_err(NotOpened::from)?)
            }
            EngineKind::Postgres => {
                let options = PostgresOptions {
                    cleaning_interval: CLEANING_INTERVAL,
                    makes_schema: makes,
                    ..self.settings.postgres.options(&memory, String::new())
                };
                let opened = Box::pin(PostgresEngine::open(options, clock)).await;
                Ok(opened.map_err(NotOpened::from)?)
            }
        }
    }
}

/// An address, and what is named behind a `#`: a schema, or a stream.
fn parted(text: &str) -> Result<(&str, Option<&str>), PlaceError> {
    match text.rsplit_once('#') {
        Some((url, name)) if url.contains('#') || name.contains(['@', ':', '/']) => {
            Err(PlaceError::Hash)
        }
        Some((url, name)) => Ok((url, Some(name))),
        None => Ok((text, None)),
    }
}

/// The whole path without links, also of what does not exist yet.
fn whole(dir: &Path) -> PathBuf {
    if let Ok(whole) = dir.canonicalize() {
        return whole;
    }
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => whole(parent).join(name),
        _ => absolute,
    }
}

fn is_data_directory(dir: &Path) -> bool {
    dir.join("checkpoint.sqlite").exists()
}

/// A lock is left behind by whoever looked at it.
fn is_empty(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().all(|entry| entry.file_name() == "lock"),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> String {
        match Place::parse(text) {
            Ok(place) => place.name(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_place_names_its_engine_and_hides_passwords() {
        let nowhere = "local:/does/not/exist";
        assert_eq!(name(nowhere), nowhere);
        let database = "postgres://ada:s3cret@db:5432/q?sslmode=require";
        assert_eq!(name(database), "postgres://ada@db:5432/q#millrace");
        let schema = format!("{database}#other");
        assert_eq!(name(&schema), "postgres://ada@db:5432/q#other");
        let servers = "nats://ada:s3cret@two:4222,nats://one:4222";
        assert_eq!(
            name(servers),
            "nats://ada@two:4222,nats://one:4222#millrace"
        );
        assert_eq!(name("tls://one#other"), "tls://one#other");
        for text in [
            "",
            "millrace-data",
            "local:",
            "mysql://db/q?password=s3cret",
            "host=db password=s3cret",
        ] {
            let told = name(text);
            assert!(told.contains("names no store; write local:DIR"), "{told}");
            assert!(!told.contains("s3cret"), "{told}");
        }
    }

    #[test]
    fn a_hash_in_a_password_is_no_schema_and_is_not_shown() {
        for text in [
            "postgres://ada:s3#cret@db/q",
            "postgres://ada:s3#cret@db/q#other",
            "postgres://ada:s3#c:ret@db",
        ] {
            let told = name(text);
            assert!(told.contains("a # in a password is written %23"), "{told}");
            assert!(!told.contains("s3") && !told.contains("ret"), "{told}");
        }
        assert_eq!(
            name("postgres://ada:s3%23cret@db/q"),
            "postgres://ada@db/q#millrace"
        );
    }

    #[test]
    fn only_the_same_store_is_the_same() {
        let place = |text| Place::parse(text).expect("a place");
        assert!(place("local:.").is(&place("local:./.")));
        let database = place("postgres://ada@db/q");
        assert!(database.is(&place("postgres://ada@db/q#millrace")));
        assert!(!database.is(&place("postgres://ada@db/q#other")));
        assert!(!database.is(&place("local:.")));
        let servers = place("nats://a,nats://b");
        assert!(servers.is(&place("nats://b,nats://a#millrace")));
        assert!(!servers.is(&place("nats://a,nats://b#other")));
        assert!(!servers.is_nested(&place("local:.")));
    }

    #[test]
    fn directories_within_each_other_are_found_before_they_exist() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let of = |name: &str| {
            let path = directory.path().join(name);
            Place::parse(&format!("local:{}", path.display())).expect("a place")
        };
        let outer = of("a");
        assert!(outer.is_nested(&of("a/b/c")) && of("a/b").is_nested(&outer));
        assert!(of(".").is_nested(&outer));
        for other in ["a", "ab", "b/a"] {
            assert!(!outer.is_nested(&of(other)), "{other}");
        }
        let database = Place::parse("postgres://db/q").expect("a place");
        assert!(!database.is_nested(&outer) && !outer.is_nested(&database));
    }

    #[test]
    fn a_configuration_file_says_where_its_host_has_its_data() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("millrace.toml");
        let write = |text: &str| std::fs::write(&file, text).expect("written");
        let read = || Place::parse(&format!("config:{}", file.display()));
        write("data_dir = \"/does/not/exist\"\n");
        assert_eq!(read().expect("a place").name(), "local:/does/not/exist");
        write("[engine]\nkind = \"postgres\"\n[engine.postgres]\nurl = \"postgres://db/q\"\n");
        assert_eq!(read().expect("a place").name(), "postgres://db/q#millrace");
        write("[engine]\nkind = \"memory\"\n");
        assert!(matches!(read(), Err(PlaceError::Memory)));
        write("nonsense = 1\n");
        assert!(matches!(read(), Err(PlaceError::Config(_))));
    }
}
