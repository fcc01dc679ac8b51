//! How the engine connects, and how it judges other hosts.

use std::time::Duration;

use millrace_engine::HostBounds;

/// The settings of an engine on PostgreSQL.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Where the database is: `postgres://user:password@host:port/database?sslmode=…`. A pooler in session mode may be in between.
    pub url: String,
    /// The schema that holds everything; created if it does not exist.
    pub schema: String,
    /// Whether the schema is created if it does not exist; otherwise that is an error.
    pub makes_schema: bool,
    /// The address at which clients and other hosts reach this host; empty if there is none.
    pub address: String,
    /// The version of the host, for other hosts to see.
    pub release: String,
    /// Connections for reads and administration.
    pub connections_max: u32,
    /// How often a host says that it lives.
    pub heartbeat_interval: Duration,
    /// A host that has not said so for this long is considered dead.
    pub dead_after: Duration,
    /// How often this host looks for what others have changed, in case a notification was lost.
    pub poll_interval: Duration,
    /// How often it is looked what is no longer kept.
    pub cleaning_interval: Duration,
    /// Bounds of this host's memory.
    pub bounds: HostBounds,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            url: String::new(),
            schema: "millrace".to_owned(),
            makes_schema: true,
            address: String::new(),
            release: String::new(),
            connections_max: 8,
            heartbeat_interval: Duration::from_secs(3),
            dead_after: Duration::from_secs(10),
            poll_interval: Duration::from_millis(500),
            cleaning_interval: Duration::from_secs(60),
            bounds: HostBounds::default(),
        }
    }
}
