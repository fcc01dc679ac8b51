//! TLS for every door: the certificate and the key, and the roots that certificates of clients are checked against, read again when
//! their files change. Connections go on with what they began with.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::TcpStream;
use tokio_rustls::client;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeroize::Zeroizing;

use super::bounds::{HANDSHAKE_MS_MAX, TLS_FILE_BYTES_MAX};
use super::certificate::ClientCertificate;
use super::stream::Duplex;

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate, and those between it and its root, in PEM.
    pub(crate) certificate: PathBuf,
    /// Its key, in PEM.
    pub(crate) key: PathBuf,
    /// Whose certificates clients may have; they are asked for none if absent.
    pub(crate) clients: Option<ClientFiles>,
}

/// What certificates of clients are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientFiles {
    /// The roots, in PEM.
    pub(crate) roots: PathBuf,
    /// Whether a client without a certificate is refused.
    pub(crate) is_required: bool,
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
    #[error("{} has a certificate that cannot be a root: {source}", path.display())]
    Root {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("{} cannot check certificates of clients: {why}", path.display())]
    Clients { path: PathBuf, why: String },
}

impl TlsError {
    /// Whether this file is at fault.
    pub(crate) fn is_about(&self, file: &Path) -> bool {
        match self {
            Self::Unreadable { path, .. }
            | Self::TooLarge(path)
            | Self::Nothing { path, .. }
            | Self::Root { path, .. }
            | Self::Clients { path, .. } => path == file,
            Self::Unusable(_) => false,
        }
    }
}

/// A door's TLS.
pub(crate) struct Tls {
    files: TlsFiles,
    inner: RwLock<Inner>,
}

struct Inner {
    config: Arc<ServerConfig>,
    /// The host's certificate with its key, which it presents to other hosts, too.
    own: Arc<CertifiedKey>,
    /// To notice changes: the files are small, and their times can be anything.
    read: FileBytes,
}

/// The bytes of all files.
#[derive(PartialEq, Eq)]
struct FileBytes {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_roots: Option<Vec<u8>>,
}

impl Tls {
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn open(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let inner = RwLock::new(files.read().and_then(|read| Inner::of(&files, read))?);
        Ok(Arc::new(Self { files, inner }))
    }

    /// Takes over files that have changed. Until they can be used, what was there before counts.
    pub(crate) fn reload(&self) {
        let renewed = self.files.read().and_then(|read| {
            if self.inner.read().read == read {
                return Ok(false);
            }
            let renewed = Inner::of(&self.files, read)?;
            *self.inner.write() = renewed;
            Ok(true)
        });
        match renewed {
            Ok(false) => {}
            Ok(true) => tracing::info!(
                certificate = %self.files.certificate.display(),
                "the certificate, or what those of clients are checked against, has changed; it counts for new connections"
            ),
            Err(error) => tracing::warn!(
                %error,
                "the certificate's files have changed and cannot be used; the old ones stay in use"
            ),
        }
    }

    /// Begins TLS on a connection, and reads the other side's certificate if it has one; `None` if the other side does not begin, or not
    /// in time.
    pub(super) async fn begin(
        &self,
        stream: Box<dyn Duplex>,
    ) -> Option<(TlsStream<Box<dyn Duplex>>, Option<Arc<ClientCertificate>>)> {
        let config = Arc::clone(&self.inner.read().config);
        let begun = TlsAcceptor::from(config).accept(stream);
        let begun = tokio::time::timeout(Duration::from_millis(HANDSHAKE_MS_MAX), begun).await;
        match begun {
            Ok(Ok(stream)) => {
                let chain = stream.get_ref().1.peer_certificates();
                let first = chain.and_then(<[_]>::first);
                let certificate = first.and_then(|first| ClientCertificate::read(first));
                let certificate = certificate.map(Arc::new);
                Some((stream, certificate))
            }
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
    /// The roots in this file; without one, no other host is asked over TLS. A host that wants to know who asks is shown this one's own
    /// certificate.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn of(authority: Option<&Path>, own: Option<Arc<Tls>>) -> Result<Self, TlsError> {
        let Some(path) = authority else {
            return Ok(Self(None));
        };
        let roots = roots_of(path, &read(path)?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?
            .with_root_certificates(roots);
        let config = match own {
            Some(own) => config.with_client_cert_resolver(Arc::new(OwnCertificate(own))),
            None => config.with_no_client_auth(),
        };
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

/// The host's certificate as it is now, for whoever asks for one.
struct OwnCertificate(Arc<Tls>);

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnCertificate(…)")
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.inner.read().own))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl TlsFiles {
    fn read(&self) -> Result<FileBytes, TlsError> {
        let roots = self.clients.as_ref().map(|clients| read(&clients.roots));
        Ok(FileBytes {
            certificate: read(&self.certificate)?,
            key: Zeroizing::new(read(&self.key)?),
            client_roots: roots.transpose()?,
        })
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

/// The certificates of a file, as roots.
fn roots_of(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem).flatten() {
        let added = roots.add(certificate);
        added.map_err(|source| TlsError::Root {
            path: path.to_owned(),
            source,
        })?;
    }
    match roots.is_empty() {
        true => Err(TlsError::Nothing {
            path: path.to_owned(),
            what: "certificate",
        }),
        false => Ok(roots),
    }
}

impl Inner {
    fn of(files: &TlsFiles, read: FileBytes) -> Result<Self, TlsError> {
        let nothing = |path: &Path, what| TlsError::Nothing {
            path: path.to_owned(),
            what,
        };
        let provider = Arc::new(ring::default_provider());
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(&read.certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| nothing(&files.certificate, "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&read.key);
        let key = key.map_err(|_| nothing(&files.key, "private key"))?;
        let own = CertifiedKey::from_der(chain, key, &provider).map_err(TlsError::Unusable)?;
        let own = Arc::new(own);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?;
        let builder = match (&files.clients, &read.client_roots) {
            (Some(clients), Some(pem)) => {
                let roots = Arc::new(roots_of(&clients.roots, pem)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match clients.is_required {
                    true => verifier.build(),
                    false => verifier.allow_unauthenticated().build(),
                };
                let verifier = verifier.map_err(|error| TlsError::Clients {
                    path: clients.roots.clone(),
                    why: error.to_string(),
                })?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let presented = SingleCertAndKey::from(Arc::clone(&own));
        let mut config = builder.with_cert_resolver(Arc::new(presented));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            own,
            read,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::socket::Stream;

    /// Files of an authority and of two hosts; `None` without the tool that makes them.
    fn made() -> Option<tempfile::TempDir> {
        const MAKE: &str = r#"set -e
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
openssl req -x509 $key -days 2 -subj /CN=ours -keyout ours.key -out ours.crt
for name in one other; do
  printf "subjectAltName=DNS:localhost,DNS:$name.internal" > names
  openssl req $key -subj "/CN=$name" -keyout $name.key -out $name.csr
  openssl x509 -req -in $name.csr -CA ours.crt -CAkey ours.key -CAcreateserial -days 2 -extfile names -out $name.crt
done"#;
        let directory = tempfile::tempdir().expect("a directory");
        let made = std::process::Command::new("sh")
            .args(["-c", MAKE])
            .current_dir(directory.path())
            .output();
        match made {
            Ok(made) if made.status.success() => Some(directory),
            _ => {
                println!("skipped: openssl is not installed on this machine");
                None
            }
        }
    }

    #[tokio::test]
    async fn a_host_shows_its_own_certificate_to_one_that_requires_one() {
        let Some(directory) = made() else {
            return;
        };
        let file = |name: &str| directory.path().join(name);
        let tls = |name: &str| {
            let files = TlsFiles {
                certificate: file(&format!("{name}.crt")),
                key: file(&format!("{name}.key")),
                clients: Some(ClientFiles {
                    roots: file("ours.crt"),
                    is_required: true,
                }),
            };
            Tls::open(files).expect("a certificate")
        };
        let asked = tls("other");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        for (own, expected) in [(Some(tls("one")), Some("dns:one.internal")), (None, None)] {
            let trust = Trust::of(Some(&file("ours.crt")), own).expect("roots");
            let asking = async {
                let stream = TcpStream::connect(("127.0.0.1", port)).await?;
                let address = format!("localhost:{port}");
                let mut begun = trust.begin(&address, stream).await?;
                // With TLS 1.3 a client learns at its first read whether its certificate was accepted.
                tokio::io::AsyncReadExt::read(&mut begun, &mut [0]).await
            };
            let answering = async {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (stream, _) = Stream::Tcp(stream).known().expect("a connection");
                let (mut stream, certificate) = asked.begin(stream).await?;
                tokio::io::AsyncWriteExt::write_all(&mut stream, &[1])
                    .await
                    .expect("sent");
                certificate
            };
            let (asking, certificate) = tokio::join!(asking, answering);
            assert_eq!(asking.is_ok(), expected.is_some());
            let names = certificate.map(|certificate| certificate.identities[1].to_string());
            assert_eq!(names.as_deref(), expected);
        }
    }
}
