//! Fetches the keys of a provider, from a file or over HTTPS. Blocking, within a time and a size; called on threads that may block.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::bounds::{JWKS_BYTES_MAX, JWKS_FETCH_MS_MAX};
use super::keys::{Keys, KeysError};
use super::settings::{Place, Provider, is_protected};

/// Why there are no new keys. Those before stay.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0} cannot be read: {1}")]
    File(String, std::io::Error),
    #[error("{0} has no certificate in PEM")]
    Authority(String),
    #[error("{0} cannot be reached: {1}")]
    Unreached(String, Box<ureq::Error>),
    #[error("{0} answers with status {1}")]
    Status(String, u16),
    #[error("{0} has more than {JWKS_BYTES_MAX} bytes")]
    TooLarge(String),
    #[error("{0} is not a provider's configuration: {1}")]
    NoConfiguration(String, serde_json::Error),
    #[error("{0} is the configuration of another issuer, {1:?}")]
    OtherIssuer(String, String),
    #[error("{0} names {1:?} as the address of the keys, which has no TLS")]
    Unprotected(String, String),
    #[error("{0}: {1}")]
    Keys(String, KeysError),
}

/// What OpenID Connect Discovery (section 3) has of interest here.
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

/// Fetches the keys.
pub(super) fn fetch(provider: &Provider) -> Result<Keys, FetchError> {
    let (from, bytes) = match &provider.place {
        Place::File(file) => (file.display().to_string(), read(file)?),
        Place::Url(url) => (url.clone(), get(&agent(provider)?, url)?),
        Place::Discovery(url) => {
            let agent = agent(provider)?;
            let keys = discovered(&get(&agent, url)?, url, &provider.issuer)?;
            let bytes = get(&agent, &keys)?;
            (keys, bytes)
        }
    };
    Keys::read(&bytes).map_err(|error| FetchError::Keys(from, error))
}

/// The address of the keys in a provider's configuration.
fn discovered(bytes: &[u8], url: &str, issuer: &str) -> Result<String, FetchError> {
    let said: Configuration = serde_json::from_slice(bytes)
        .map_err(|error| FetchError::NoConfiguration(url.to_owned(), error))?;
    if said.issuer != issuer {
        return Err(FetchError::OtherIssuer(url.to_owned(), said.issuer));
    }
    match is_protected(&said.jwks_uri) {
        true => Ok(said.jwks_uri),
        false => Err(FetchError::Unprotected(url.to_owned(), said.jwks_uri)),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, FetchError> {
    let name = || file.display().to_string();
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|error| FetchError::File(name(), error))?;
    let read = opened.take(JWKS_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| FetchError::File(name(), error))?;
    match bytes.len() as u64 > JWKS_BYTES_MAX {
        true => Err(FetchError::TooLarge(name())),
        false => Ok(bytes),
    }
}

fn get(agent: &Agent, url: &str) -> Result<Vec<u8>, FetchError> {
    let unreached = |error| match error {
        ureq::Error::BodyExceedsLimit(_) => FetchError::TooLarge(url.to_owned()),
        error => FetchError::Unreached(url.to_owned(), Box::new(error)),
    };
    let asked = agent.get(url).header("accept", "application/json").call();
    let mut answer = asked.map_err(unreached)?;
    match answer.status().as_u16() {
        200 => {}
        status => return Err(FetchError::Status(url.to_owned(), status)),
    }
    let body = answer.body_mut().with_config().limit(JWKS_BYTES_MAX);
    body.read_to_vec().map_err(unreached)
}

/// A new one for each fetch: the files of certificates may have changed, and fetches are rare.
fn agent(provider: &Provider) -> Result<Agent, FetchError> {
    let roots = match &provider.ca_file {
        Some(file) => {
            let pem = read(file)?;
            let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(FetchError::Authority(file.display().to_string()));
            }
            RootCerts::from(certificates)
        }
        None => RootCerts::PlatformVerifier,
    };
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        // Keys come from the address that the settings name, and from no other.
        .max_redirects(0)
        // Proxies of the environment are for the web; a provider on this machine is not behind one.
        .proxy(match &provider.place {
            Place::Url(url) | Place::Discovery(url) if url.starts_with("https://") => {
                ureq::Proxy::try_from_env()
            }
            _ => None,
        })
        .timeout_global(Some(Duration::from_millis(JWKS_FETCH_MS_MAX)))
        .build();
    Ok(config.new_agent())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_keys_is_taken_from_the_issuer_itself_and_only_with_tls() {
        let found = |text: &str| discovered(text.as_bytes(), "U", "https://id.example");
        let right =
            r#"{"issuer":"https://id.example","jwks_uri":"https://id.example/keys","more":[]}"#;
        assert_eq!(found(right).expect("an address"), "https://id.example/keys");
        for wrong in [
            r#"{"issuer":"https://other.example","jwks_uri":"https://id.example/keys"}"#,
            r#"{"issuer":"https://id.example/","jwks_uri":"https://id.example/keys"}"#,
            r#"{"issuer":"https://id.example","jwks_uri":"http://id.example/keys"}"#,
            r#"{"issuer":"https://id.example","jwks_uri":"file:///etc/keys"}"#,
            r#"{"issuer":"https://id.example"}"#,
            "<html>",
        ] {
            assert!(found(wrong).is_err(), "{wrong}");
        }
    }
}
