//! How the engine connects, and how it judges other hosts.

use std::path::PathBuf;
use std::time::Duration;

use millrace_engine::HostBounds;

/// The settings of an engine on JetStream.
#[derive(Clone)]
pub struct JetstreamOptions {
    /// Addresses of servers, like `nats://host:4222`. One that answers is enough; it names the others.
    pub servers: Vec<String>,
    /// How this host says who it is.
    pub credentials: Credentials,
    /// A file with certificates of authorities (PEM); with it, the connection must be encrypted.
    pub tls_ca: Option<PathBuf>,
    /// This host's certificate and key (PEM), if the servers ask for one.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// The stream that holds everything. It is also the first word of all subjects.
    pub stream: String,
    /// Whether the stream is created if it does not exist.
    pub makes_stream: bool,
    /// Copies of the stream when it is created; `None` is three in a cluster, and one otherwise.
    pub replicas: Option<usize>,
    /// Whether the servers write to the disk before they answer (`sync_interval: always`). A client cannot see it.
    pub synced: bool,
    /// The address at which clients and other hosts reach this host; empty if there is none.
    pub address: String,
    /// How often a host says that it lives.
    pub heartbeat_interval: Duration,
    /// A host that has not said so for this long is considered dead.
    pub dead_after: Duration,
    /// How often it is looked what is no longer kept.
    pub cleaning_interval: Duration,
    /// How often the counts of all partitions are written, so that a new host begins there.
    pub checkpoint_interval: Duration,
    /// How old counts must be before anything below them is removed: no host counts from further back then.
    pub counted_after: Duration,
    /// Bytes of messages that this host has just written, which it keeps in memory for those who read them.
    pub fresh_bytes_max: usize,
    /// Bounds of this host's memory.
    pub bounds: HostBounds,
}

/// How a host says who it is.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Not at all.
    #[default]
    None,
    /// With a user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// With a token.
    Token(String),
    /// With the seed of an nkey.
    Nkey(String),
    /// With the content of a file of credentials (a JWT and a seed).
    File(String),
}

impl Default for JetstreamOptions {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            credentials: Credentials::None,
            tls_ca: None,
            tls_identity: None,
            stream: "millrace".to_owned(),
            makes_stream: true,
            replicas: None,
            synced: false,
            address: String::new(),
            heartbeat_interval: Duration::from_secs(2),
            dead_after: Duration::from_secs(7),
            cleaning_interval: Duration::from_secs(60),
            checkpoint_interval: Duration::from_secs(10),
            counted_after: Duration::from_secs(60),
            fresh_bytes_max: 16 << 20,
            bounds: HostBounds::default(),
        }
    }
}

/// Without anything secret.
impl std::fmt::Debug for JetstreamOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JetstreamOptions")
            .field("stream", &self.stream)
            .field("replicas", &self.replicas)
            .field("synced", &self.synced)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
