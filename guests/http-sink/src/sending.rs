//! One request and the beginning of its answer.

use requests::encoding::escaped;
use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingResponse, Method, OutgoingBody, OutgoingRequest, Scheme,
};

/// Bytes that are written to a body at a time.
const WRITE_BYTES: usize = 4_096;
/// Bytes of an answer's body that are shown to people.
const SHOWN_BYTES: usize = 200;

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) is_tls: bool,
    /// Name or address, and port.
    pub(crate) server: String,
    pub(crate) path: String,
}

impl Target {
    /// The target of a message with this key.
    pub(crate) fn of(url: &str, key: Option<&[u8]>) -> Result<Self, String> {
        let (is_tls, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(format!("{url:?} begins with neither https:// nor http://")),
        };
        let (server, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        Ok(Self {
            is_tls,
            server: server.to_owned(),
            path: path.replace("{key}", &escaped(key.unwrap_or_default())),
        })
    }
}

/// A request.
pub(crate) struct Request<'a> {
    pub(crate) target: Target,
    pub(crate) method: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: &'a [u8],
}

/// The beginning of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    /// Seconds after which the server wants to be asked again.
    pub(crate) retry_after_s: Option<u64>,
    /// What it said, for people.
    pub(crate) said: String,
}

/// Sends the request and waits for the answer.
pub(crate) fn send(request: &Request<'_>) -> Result<Answered, ErrorCode> {
    let wrong = |what: &str| ErrorCode::InternalError(Some(format!("the {what} is not valid")));
    let fields = Fields::new();
    for (name, value) in &request.headers {
        let added = fields.append(name, value);
        added.map_err(|_| wrong(&format!("header {name}")))?;
    }
    let outgoing = OutgoingRequest::new(fields);
    let target = &request.target;
    let scheme = match target.is_tls {
        true => Scheme::Https,
        false => Scheme::Http,
    };
    let set = outgoing.set_scheme(Some(&scheme));
    set.map_err(|()| wrong("scheme"))?;
    let set = outgoing.set_authority(Some(&target.server));
    set.map_err(|()| wrong("server"))?;
    let set = outgoing.set_path_with_query(Some(&target.path));
    set.map_err(|()| wrong("path"))?;
    let set = outgoing.set_method(&method(&request.method));
    set.map_err(|()| wrong("method"))?;
    let body = outgoing.body().map_err(|()| wrong("body"))?;
    let future = handle(outgoing, None)?;
    write(body, request.body);
    future.subscribe().block();
    match future.get() {
        Some(Ok(answer)) => Ok(read(&answer?)),
        Some(Err(())) | None => Err(ErrorCode::InternalError(None)),
    }
}

fn method(word: &str) -> Method {
    match word.to_ascii_uppercase().as_str() {
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        "GET" => Method::Get,
        other => Method::Other(other.to_owned()),
    }
}

/// Writes the body; if it breaks off, the answer says why.
fn write(body: OutgoingBody, bytes: &[u8]) {
    if let Ok(stream) = body.write() {
        for part in bytes.chunks(WRITE_BYTES) {
            if stream.blocking_write_and_flush(part).is_err() {
                break;
            }
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

fn read(response: &IncomingResponse) -> Answered {
    let after = response.headers().get("retry-after");
    let after = after.first().and_then(|after| str::from_utf8(after).ok());
    Answered {
        status: response.status(),
        retry_after_s: after.and_then(|after| after.trim().parse().ok()),
        said: said(response).unwrap_or_default(),
    }
}

/// The beginning of the body, on one line.
fn said(response: &IncomingResponse) -> Option<String> {
    let body = response.consume().ok()?;
    let stream = body.stream().ok()?;
    let bytes = stream.blocking_read(SHOWN_BYTES as u64).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_server_and_a_path_with_the_key_in_it() {
        let target = |url: &str| Target::of(url, Some(b"a b/\xc3\xa4"));
        let expected = |is_tls, server: &str, path: &str| {
            Ok(Target {
                is_tls,
                server: server.to_owned(),
                path: path.to_owned(),
            })
        };
        let server = "api.example.com:8080";
        assert_eq!(
            target("https://api.example.com:8080/orders/{key}?x=1"),
            expected(true, server, "/orders/a%20b%2F%C3%A4?x=1")
        );
        assert_eq!(target("http://[::1]"), expected(false, "[::1]", "/"));
        assert_eq!(
            target("http://a.example?x"),
            expected(false, "a.example", "/?x")
        );
        assert!(target("ftp://a.example").is_err() && target("a.example").is_err());
    }
}
