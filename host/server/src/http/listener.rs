//! Connections: so many at once, no patience for slow heads or readers that do not read, no waiting for small packets, and a polite end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::bounds::{HEAD_BYTES_MAX, HEAD_LINES_MAX, HEAD_MS_MAX, WRITE_SILENCE_MS_MAX};
use super::modules::Peer;
use super::stream::Impatient;
use super::{App, router};

/// After an accept that failed (too many open files, say): long enough to let some close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers until the host stops; returns when the last connection is closed. Dropping it cuts them off.
pub(crate) async fn serve(listener: TcpListener, app: Arc<App>, connections_max: usize) {
    let stopping = app.stopping.clone();
    let router = router(app);
    let room = Arc::new(Semaphore::new(connections_max));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            () = stopping.cancelled() => break,
        };
        // Finished connections are taken out, so that the set stays as small as the semaphore says.
        while connections.try_join_next().is_some() {}
        let Some((stream, permit)) = accepted else {
            continue;
        };
        let connection = converse(stream, router.clone(), stopping.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn converse(stream: TcpStream, router: Router, stopping: CancellationToken) {
    // Answers are written whole; waiting for more to send would only add delay.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let peer = Peer(stream.peer_addr().ok().map(|address| address.ip()));
    let stream = Impatient::new(stream, Duration::from_millis(WRITE_SILENCE_MS_MAX));
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEAD_MS_MAX))
        .max_headers(HEAD_LINES_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
