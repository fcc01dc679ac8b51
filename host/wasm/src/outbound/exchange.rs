//! One request and its answer on a connection of its own: found, checked, connected, sent, in that order, each within its time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{self, SendRequest};
use millrace_model::processor::Origin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, WasiBody};

use super::Access;
use super::addresses::{ADDRESSES_MAX, Reach, reach};
use super::body::{BoundedAnswer, BoundedRequest};
use super::errors::{of_connect, of_hyper, of_resolving, of_tls};

/// Headers of an answer.
const ANSWER_HEADERS_MAX: usize = 100;

/// Bytes of an answer's status line and headers.
const ANSWER_HEAD_BYTES_MAX: usize = 64 << 10;

/// The times of one exchange: the smaller of the host's and the guest's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) connect: Duration,
    pub(super) first_byte: Duration,
    pub(super) between_bytes: Duration,
}

/// A connection in use. Dropping it closes the connection.
pub(super) struct Exchange {
    connection: JoinHandle<()>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Sends a request to a granted server and waits for the head of its answer.
pub(super) async fn exchange(
    access: Arc<Access>,
    origin: Origin,
    request: Request<WasiBody>,
    times: Times,
) -> Result<Response<WasiBody>, Error> {
    let request = addressed(&access, &origin, request)?;
    let is_head = request.method() == Method::HEAD;
    let until = access.now() + times.connect;
    let permits = timeout(times.connect, access.permits());
    let permits = permits.await.map_err(|_| Error::ConnectionLimitReached)?;
    let addresses = timeout(access.left(until), find(&access, &origin));
    let addresses = addresses.await.map_err(|_| Error::DnsTimeout)??;
    let stream = connect(&access, &addresses, until).await?;
    let connected = async {
        match origin.is_tls() {
            true => {
                let secured = secured(&access, &origin, stream).await?;
                handshake(&access, secured, permits).await
            }
            false => handshake(&access, stream, permits).await,
        }
    };
    let connected = timeout(access.left(until), connected).await;
    let (mut sender, connection) = connected.map_err(|_| Error::ConnectionTimeout)??;
    let exchange = Exchange { connection };
    let answer = timeout(times.first_byte, sender.send_request(request)).await;
    let answer = answer.map_err(|_| Error::ConnectionReadTimeout)?;
    let answer = answer.map_err(|error| of_hyper(&error))?;
    let bytes_max = access.settings().response_bytes_max;
    if !is_head {
        check_length(&answer, bytes_max)?;
    }
    let bounded =
        |body| BoundedAnswer::new(body, bytes_max, times.between_bytes, exchange).boxed_unsync();
    Ok(answer.map(bounded))
}

/// The request as it goes to its server: only path and query in the first line, and the server's name in `Host`, whatever the guest
/// wrote.
fn addressed(
    access: &Access,
    origin: &Origin,
    request: Request<WasiBody>,
) -> Result<Request<BoundedRequest>, Error> {
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Error::HttpRequestMethodInvalid);
    }
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !path.starts_with('/') {
        return Err(Error::HttpRequestUriInvalid);
    }
    parts.uri = path
        .parse::<Uri>()
        .map_err(|_| Error::HttpRequestUriInvalid)?;
    let server = origin.to_string();
    let server = server.split_once("://").map_or("", |(_, server)| server);
    let server = HeaderValue::from_str(server).map_err(|_| Error::HttpRequestUriInvalid)?;
    parts.headers.insert(HOST, server);
    let close = HeaderValue::from_static("close");
    parts.headers.insert(CONNECTION, close);
    let bytes_max = access.settings().request_bytes_max;
    Ok(Request::from_parts(
        parts,
        BoundedRequest::new(body, bytes_max),
    ))
}

/// The addresses to try. One that is not permitted refuses the whole name: nobody should have to guess which one was used.
async fn find(access: &Access, origin: &Origin) -> Result<Vec<SocketAddr>, Error> {
    if let Ok(address) = origin.host().parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, origin.port())]);
    }
    let resolver = &access.settings().resolver;
    let found = resolver.addresses(origin.host(), origin.port()).await;
    let mut found = found.map_err(|error| of_resolving(&error))?;
    found.truncate(ADDRESSES_MAX);
    if found.is_empty() {
        return Err(Error::DestinationNotFound);
    }
    let prohibited = found.iter().find(|address| match reach(address.ip()) {
        Reach::Public => false,
        Reach::Private => !access.private,
        Reach::None => true,
    });
    match prohibited {
        None => Ok(found),
        Some(address) => {
            let address = address.ip();
            let remedy = match reach(address) {
                Reach::Private => "the grant http_private permits private addresses",
                _ => "no server is there",
            };
            access.note(&format!(
                "a request to {origin} was refused: the name has the address {address}, and {remedy}"
            ));
            Err(Error::DestinationIpProhibited)
        }
    }
}

/// A connection to the first address that answers. Each has an equal part of the time that is left.
async fn connect(
    access: &Access,
    addresses: &[SocketAddr],
    until: Duration,
) -> Result<TcpStream, Error> {
    let mut failed = Error::DestinationNotFound;
    for (tried, address) in addresses.iter().enumerate() {
        let part = access.left(until) / (addresses.len() - tried) as u32;
        match timeout(part, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // A request is small and waits for its answer.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => failed = of_connect(&error),
            Err(_) => failed = Error::ConnectionTimeout,
        }
    }
    Err(failed)
}

async fn secured(
    access: &Access,
    origin: &Origin,
    stream: TcpStream,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, Error> {
    let name = ServerName::try_from(origin.host().to_owned());
    let name = name.map_err(|_| Error::TlsCertificateError)?;
    let connector = TlsConnector::from(Arc::clone(access.tls()));
    let secured = connector.connect(name, stream).await;
    secured.map_err(|error| of_tls(&error))
}

/// Begins to speak HTTP on a connection, whose permits end with it: a guest that keeps an answer which has arrived keeps none.
async fn handshake(
    access: &Access,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    permits: [OwnedSemaphorePermit; 2],
) -> Result<(SendRequest<BoundedRequest>, JoinHandle<()>), Error> {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(ANSWER_HEADERS_MAX)
        .max_buf_size(ANSWER_HEAD_BYTES_MAX);
    let connected = builder.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = connected.map_err(|error| of_hyper(&error))?;
    let exchange_max = Duration::from_millis(access.settings().exchange_ms_max);
    let connection = tokio::spawn(async move {
        // Its errors reach the guest through the answer.
        let _ = timeout(exchange_max, connection).await;
        drop(permits);
    });
    Ok((sender, connection))
}

/// Refuses an answer that says itself that it is too large.
fn check_length<B>(answer: &Response<B>, bytes_max: u64) -> Result<(), Error> {
    let length = answer.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    match length {
        Some(bytes) if bytes > bytes_max => Err(Error::HttpResponseBodySize(Some(bytes))),
        _ => Ok(()),
    }
}
