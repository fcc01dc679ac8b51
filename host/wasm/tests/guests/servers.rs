//! Servers on loopback that answer by script, well or badly, and remember what they were asked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Longest head of a request that a server reads.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// How a server answers each request.
#[derive(Clone, Debug)]
pub(crate) enum Script {
    /// With these bytes; then it closes.
    Bytes(String),
    /// With the head of an answer, and then with bytes without end.
    Endless,
    /// With the head of an answer and one byte; then with silence.
    Silent,
    /// Not at all, but it keeps the connection.
    Mute,
    /// By closing the connection.
    Closes,
}

impl Script {
    /// An answer with a body.
    pub(crate) fn body(body: &str) -> Self {
        let length = body.len();
        Self::Bytes(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }
}

/// A server; it ends when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(script: Script) -> Self {
        Self::listen(script, None).await
    }

    /// A server with the certificate of `api.example.com`, signed by [`root`].
    pub(crate) async fn start_tls(script: Script) -> Self {
        let file = |name| Path::new(TLS).join(name);
        let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        Self::listen(script, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listen(script: Script, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let task = tokio::spawn({
            let asked = Arc::clone(&asked);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (script, asked, tls) = (script.clone(), Arc::clone(&asked), tls.clone());
                    tokio::spawn(async move {
                        match tls {
                            None => serve(stream, script, &asked).await,
                            Some(tls) => match tls.accept(stream).await {
                                Ok(stream) => serve(stream, script, &asked).await,
                                Err(_) => None,
                            },
                        }
                    });
                }
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    /// Its origin by address.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The heads of the requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests/tls");

/// The certificate that signed those of the servers.
pub(crate) fn root() -> PathBuf {
    Path::new(TLS).join("root.pem")
}

/// `None`: the client is gone.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: Script,
    asked: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    asked
        .lock()
        .push(String::from_utf8_lossy(&head).into_owned());
    let endless = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    match script {
        Script::Bytes(bytes) => {
            stream.write_all(bytes.as_bytes()).await.ok()?;
            stream.shutdown().await.ok()?;
            // Until the client has closed, so that no reset overtakes the answer.
            while stream.read_buf(&mut head).await.ok()? > 0 {
                head.clear();
            }
        }
        Script::Endless => {
            stream.write_all(endless.as_bytes()).await.ok()?;
            let chunk = format!("{:x}\r\n{}\r\n", 16 << 10, "x".repeat(16 << 10));
            loop {
                stream.write_all(chunk.as_bytes()).await.ok()?;
            }
        }
        Script::Silent => {
            stream.write_all(endless.as_bytes()).await.ok()?;
            stream.write_all(b"1\r\nx\r\n").await.ok()?;
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        Script::Mute => tokio::time::sleep(Duration::from_secs(600)).await,
        Script::Closes => {}
    }
    Some(())
}
