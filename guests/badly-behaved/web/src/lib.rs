//! Answers HTTP requests, well or badly, as the last segment of their path says: `echo` says what it was asked, `count` counts the
//! requests of its instance, `authorized` says whether it sees credentials, `parts` answers in many parts, `trap`, `trap-late` (after many parts of its answer), `endless`, `silent` (no
//! answer), `refuses` (an error instead of an answer), `large` (an answer without end), `odd` (an informational status).

use std::sync::atomic::{AtomicU32, Ordering};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::OutputStream;

struct Web;

wasip2::http::proxy::export!(Web);

static REQUESTS: AtomicU32 = AtomicU32::new(0);

/// Bytes that are written at a time.
const WRITE_BYTES: usize = 4_096;

impl Guest for Web {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let count = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        match path.rsplit('/').next().unwrap_or_default() {
            "echo" => {
                let said = echo(&request, &target);
                answer(out, 200, |stream| write(stream, said.as_bytes()));
            }
            "count" => answer(out, 200, |stream| {
                write(stream, count.to_string().as_bytes())
            }),
            "authorized" => {
                let is_authorized = request.headers().has("authorization");
                answer(out, 200, |stream| {
                    write(stream, is_authorized.to_string().as_bytes());
                });
            }
            "parts" => answer(out, 200, |stream| {
                for _ in 0..100 {
                    write(stream, &[b'x'; WRITE_BYTES]);
                }
            }),
            "trap" => panic!("as its path says"),
            "trap-late" => answer(out, 200, |stream| {
                // So many that some are on their way.
                for _ in 0..100 {
                    write(stream, &[b'x'; WRITE_BYTES]);
                }
                panic!("as its path says");
            }),
            "endless" => loop {
                std::hint::spin_loop();
            },
            "silent" => drop(out),
            "refuses" => ResponseOutparam::set(out, Err(ErrorCode::ConfigurationError)),
            "large" => answer(out, 200, |stream| {
                loop {
                    write(stream, &[b'x'; WRITE_BYTES]);
                }
            }),
            "odd" => answer(out, 101, |_| {}),
            _ => answer(out, 404, |stream| write(stream, b"no such page")),
        }
    }
}

fn echo(request: &IncomingRequest, target: &str) -> String {
    let method = format!("{:?}", request.method());
    let method = method.rsplit(':').next().unwrap_or_default().to_owned();
    let headers = request.headers().get("x-asked");
    let header = headers
        .first()
        .map(|value| String::from_utf8_lossy(value).into_owned());
    let mut length = 0;
    let mut whole = true;
    if let Ok(body) = request.consume()
        && let Ok(stream) = body.stream()
    {
        loop {
            match stream.blocking_read(WRITE_BYTES as u64) {
                Ok(part) => length += part.len(),
                Err(wasip2::io::streams::StreamError::Closed) => break,
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
    }
    let authority = request.authority().unwrap_or_default();
    format!("{method} {authority} {target} {header:?} {length} bytes, whole: {whole}")
}

fn answer(out: ResponseOutparam, status: u16, body: impl FnOnce(&OutputStream)) {
    let headers = Fields::new();
    headers
        .append("x-web", &b"yes".to_vec())
        .expect("a plain header");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("a status");
    let outgoing = response.body().expect("its body");
    ResponseOutparam::set(out, Ok(response));
    let stream = outgoing.write().expect("its stream");
    body(&stream);
    drop(stream);
    let _ = OutgoingBody::finish(outgoing, None);
}

fn write(stream: &OutputStream, bytes: &[u8]) {
    // Whoever asked may be gone.
    let _ = stream.blocking_write_and_flush(bytes);
}
