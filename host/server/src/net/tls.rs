//! TLS for every door: the certificate and the key, read again when their files change. Connections go on with what they began with.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpStream;
use tokio_rustls::client;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::bounds::{HANDSHAKE_MS_MAX, TLS_FILE_BYTES_MAX};

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate, and those between it and its root, in PEM.
    pub(crate) certificate: PathBuf,
    /// Its key, in PEM.
    pub(crate) key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is larger than {TLS_FILE_BYTES_MAX} bytes, so it is no certificate or key", .0.display())]
    TooLarge(PathBuf),
    #[error("{} has no {what} in PEM (-----BEGIN …-----)", path.display())]
    Nothing { path: PathBuf, what: &'static str },
    #[error("the certificate and the key do not belong together, or cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// A door's TLS.
pub(crate) struct Tls {
    files: TlsFiles,
    inner: RwLock<Inner>,
}

struct Inner {
    config: Arc<ServerConfig>,
    /// The bytes of both files, to notice changes: they are small, and times of files can be anything.
    read: [Vec<u8>; 2],
}

impl Tls {
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn open(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let read = files.read()?;
        let config = config_of(&files, &read)?;
        let inner = RwLock::new(Inner { config, read });
        Ok(Arc::new(Self { files, inner }))
    }

    /// Takes over files that have changed. Until they can be used, what was there before counts.
    pub(crate) fn reload(&self) {
        let renewed = self.files.read().and_then(|read| {
            if self.inner.read().read == read {
                return Ok(false);
            }
            let config = config_of(&self.files, &read)?;
            *self.inner.write() = Inner { config, read };
            Ok(true)
        });
        match renewed {
            Ok(false) => {}
            Ok(true) => tracing::info!(
                certificate = %self.files.certificate.display(),
                "the certificate has changed; new connections get the new one"
            ),
            Err(error) => tracing::warn!(
                %error,
                "the certificate's files have changed and cannot be used; the old certificate stays in use"
            ),
        }
    }

    /// Begins TLS on a connection; `None` if the other side does not, or not in time.
    pub(super) async fn begin(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.inner.read().config);
        let begun = TlsAcceptor::from(config).accept(stream);
        let begun = tokio::time::timeout(Duration::from_millis(HANDSHAKE_MS_MAX), begun).await;
        match begun {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                metrics::counter!("millrace_tls_failures_total").increment(1);
                tracing::debug!(%error, "a connection did not begin TLS");
                None
            }
            Err(_) => None,
        }
    }
}

/// Whose certificates other hosts of the store may have.
pub(crate) struct Trust(Option<TlsConnector>);

impl Trust {
    /// The roots in this file; without one, no other host is asked over TLS.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn of(authority: Option<&Path>) -> Result<Self, TlsError> {
        let Some(path) = authority else {
            return Ok(Self(None));
        };
        let mut roots = RootCertStore::empty();
        let pem = read(path)?;
        for certificate in CertificateDer::pem_slice_iter(&pem).flatten() {
            roots.add(certificate).map_err(TlsError::Unusable)?;
        }
        if roots.is_empty() {
            return Err(TlsError::Nothing {
                path: path.to_owned(),
                what: "certificate",
            });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Some(TlsConnector::from(Arc::new(config)))))
    }

    /// Begins TLS with another host at `ADDRESS:PORT`.
    pub(crate) async fn begin(
        &self,
        address: &str,
        stream: TcpStream,
    ) -> std::io::Result<client::TlsStream<TcpStream>> {
        let connector = self.0.as_ref().ok_or_else(|| {
            std::io::Error::other(
                "it has a certificate, and this host was not told whom to trust: set --tls-ca FILE",
            )
        })?;
        let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
        let name = name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        connector.connect(name, stream).await
    }
}

impl TlsFiles {
    fn read(&self) -> Result<[Vec<u8>; 2], TlsError> {
        Ok([read(&self.certificate)?, read(&self.key)?])
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > TLS_FILE_BYTES_MAX {
        return Err(TlsError::TooLarge(path.to_owned()));
    }
    fs::read(path).map_err(unreadable)
}

fn config_of(files: &TlsFiles, read: &[Vec<u8>; 2]) -> Result<Arc<ServerConfig>, TlsError> {
    let nothing = |path: &Path, what| TlsError::Nothing {
        path: path.to_owned(),
        what,
    };
    let [certificate, key] = read;
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| nothing(&files.certificate, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key);
    let key = key.map_err(|_| nothing(&files.key, "private key"))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
