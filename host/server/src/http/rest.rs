//! The rest of a request's body after its answer is ready. Many clients read no answer before they have sent everything, and would see
//! a broken connection instead; so every refusal reads the rest within a bound, and says `connection: close` if it could not.
//!
//! [`super::guard`] keeps the body, and lends it to the route.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::timeout;

use super::body::promised;
use super::bounds::DISCARDED_BYTES_MAX;
use crate::net::Line;

/// The rest of a body, kept while another reader uses it.
pub(super) struct Rest {
    lent: Lent,
    /// The client sends its body only when asked for it.
    asks_first: bool,
    promised: Option<u64>,
}

/// A body in the form for its reader.
#[derive(Clone)]
struct Lent {
    kept: Arc<Mutex<Kept>>,
    line: Option<Arc<Line>>,
}

struct Kept {
    body: Body,
    asked_for: bool,
    ended: bool,
    broken: bool,
}

/// Lends a request's body to the route.
pub(super) fn lend(request: Request) -> (Request, Rest) {
    let (parts, body) = request.into_parts();
    let kept = Kept {
        ended: body.is_end_stream(),
        body,
        asked_for: false,
        broken: false,
    };
    let lent = Lent {
        kept: Arc::new(Mutex::new(kept)),
        line: parts.extensions.get::<Arc<Line>>().cloned(),
    };
    let rest = Rest {
        lent: lent.clone(),
        asks_first: parts.headers.contains_key(EXPECT),
        promised: promised(&parts.headers),
    };
    (Request::from_parts(parts, Body::new(lent)), rest)
}

impl Rest {
    /// Reads the rest, within bounds. False if the connection must be closed, because some of it may still arrive.
    pub(super) async fn take(self, patience: Duration) -> bool {
        let (ended, broken, asked_for) = {
            let kept = self.lent.kept();
            (kept.ended, kept.broken, kept.asked_for)
        };
        if ended || broken {
            return ended;
        }
        // Asking for it now would be a promise to use it.
        if self.asks_first && !asked_for {
            return false;
        }
        // It is cut off in any case, so at once.
        if self.promised > Some(DISCARDED_BYTES_MAX) {
            return false;
        }
        let kept = self.lent.kept.clone();
        let mut chunks = Body::new(self.lent).into_data_stream();
        let rest = async {
            let mut left = DISCARDED_BYTES_MAX;
            while let Some(Ok(chunk)) = chunks.next().await {
                left = left.saturating_sub(chunk.len() as u64);
                if left == 0 {
                    break;
                }
            }
        };
        let _ = timeout(patience, rest).await;
        locked(&kept).ended
    }
}

impl Lent {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        locked(&self.kept)
    }
}

fn locked(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // After a reader's panic the body is read no further.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut kept = self.kept();
        if kept.ended {
            return Poll::Ready(None);
        }
        kept.asked_for = true;
        // Registered before checking for more: otherwise an end in between would wake nobody.
        if let Some(line) = &self.line {
            line.wakes(cx.waker());
        }
        let next = match Pin::new(&mut kept.body).poll_frame(cx) {
            Poll::Pending if self.line.as_ref().is_some_and(|l| l.gone().is_cancelled()) => {
                kept.broken = true;
                let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Poll::Ready(Some(Err(axum::Error::new(error))));
            }
            next => ready!(next),
        };
        kept.ended = next.is_none();
        kept.broken = matches!(next, Some(Err(_)));
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept();
        kept.ended || kept.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.kept().body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::header::CONTENT_LENGTH;
    use futures_util::stream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn request(body: Body) -> (Request, Rest) {
        lend(Request::new(body))
    }

    fn endless() -> Body {
        let chunk = Bytes::from(vec![0; 1 << 20]);
        Body::from_stream(stream::repeat_with(move || {
            Ok::<_, std::io::Error>(chunk.clone())
        }))
    }

    #[tokio::test]
    async fn what_was_not_read_take() {
        for body in [Body::empty(), Body::from(vec![1; 1 << 20])] {
            let (request, rest) = request(body);
            drop(request);
            assert!(rest.take(PATIENCE).await);
        }
        let (request, rest) = request(Body::from("all of it"));
        let read = to_bytes(request.into_body(), 100).await.expect("a body");
        assert_eq!(read, "all of it");
        assert!(rest.take(PATIENCE).await);
    }

    #[tokio::test]
    async fn what_never_ends_ends_the_connection() {
        for body in [
            endless(),
            Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()),
        ] {
            let (_, rest) = request(body);
            assert!(!rest.take(Duration::from_millis(50)).await);
        }
    }

    #[tokio::test]
    async fn a_client_that_asks_first_is_not_asked_for_a_body_that_nobody_wants() {
        let mut asking = Request::new(endless());
        let expect = "100-continue".parse().expect("a value");
        asking.headers_mut().insert(EXPECT, expect);
        let (_, rest) = lend(asking);
        let kept = rest.lent.kept.clone();
        assert!(!rest.take(PATIENCE).await && !locked(&kept).asked_for);
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_to_be_thrown_away_is_not_begun() {
        let mut long = Request::new(endless());
        let length = (DISCARDED_BYTES_MAX + 1).to_string();
        let length = length.parse().expect("a value");
        long.headers_mut().insert(CONTENT_LENGTH, length);
        let (_, rest) = lend(long);
        let kept = rest.lent.kept.clone();
        assert!(!rest.take(PATIENCE).await && !locked(&kept).asked_for);
    }
}
