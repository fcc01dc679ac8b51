//! The settings of the HTTP door.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::config::error::{ConfigError, refused};

/// The default address.
pub(crate) const ADDRESS_DEFAULT: &str = "127.0.0.1:7400";
/// Default for the maximum number of connections. At the bound an idle connection makes room; if
/// there is none, requests for messages are refused (503), and administration has a few connections
/// of its own.
const CONNECTIONS_MAX_DEFAULT: usize = 1_024;
/// Maximum of `idle_ms`: a day. A larger number is probably a mistake.
const IDLE_MS_MAX: u64 = 86_400_000;

/// `[listen.http]`: the door for HTTP.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(
        long = "listen",
        id = "listen.http.address",
        value_name = "ADDRESS:PORT"
    )]
    pub address: String,
    /// Other names by which clients may address this host (in Host and Origin headers), separated
    /// by commas
    #[arg(
        long = "allowed-host",
        id = "listen.http.allowed_hosts",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allowed_hosts: Vec<String>,
    /// Maximum number of connections, as far as the limit of open files allows [default: 1024]
    #[arg(long, id = "listen.http.connections_max", value_name = "COUNT")]
    pub connections_max: usize,
    /// How long an idle connection is kept; should be longer than clients and proxies keep theirs
    /// [default: 180000]
    #[arg(long, id = "listen.http.idle_ms", value_name = "MS")]
    pub idle_ms: u64,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            address: ADDRESS_DEFAULT.to_owned(),
            allowed_hosts: Vec::new(),
            connections_max: CONNECTIONS_MAX_DEFAULT,
            // Longer than the pools of common clients and proxies.
            idle_ms: 180_000,
        }
    }
}

impl HttpSettings {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.connections_max == 0 {
            return Err(refused("listen.http.connections_max", "0", "at least 1"));
        }
        if !(1_000..=IDLE_MS_MAX).contains(&self.idle_ms) {
            let why = format!("between 1000 and {IDLE_MS_MAX}");
            return Err(refused(
                "listen.http.idle_ms",
                self.idle_ms.to_string(),
                why,
            ));
        }
        Ok(())
    }

    /// How long a connection is kept between two requests.
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }

    /// The resolved addresses.
    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let why = "write ADDRESS:PORT, such as 127.0.0.1:7400";
        let wrong = |why: String| refused("listen.http.address", &*self.address, why);
        let found = self.address.to_socket_addrs();
        let found: Vec<SocketAddr> = found
            .map_err(|error| wrong(format!("{error}; {why}")))?
            .collect();
        match found.is_empty() {
            true => Err(wrong(why.to_owned())),
            false => Ok(found),
        }
    }
}
