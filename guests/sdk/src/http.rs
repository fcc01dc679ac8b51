//! HTTP requests and their answers, as a whole. [`http!`](crate::http!) exports a function of one
//! request; without WASM, [`RouteTester`](crate::testing::RouteTester) calls it.
//!
//! A component that wants bodies part by part exports `wasi:http/incoming-handler` itself, for
//! instance with `wasip2::http::proxy::export!`.

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Request {
    /// A request without headers and body, for tests.
    #[must_use]
    pub fn new(method: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            ..Self::default()
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The method, such as `GET`.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Path and query, as they were sent.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The path, which begins with that of the route.
    #[must_use]
    pub fn path(&self) -> &str {
        let end = self.target.find('?').unwrap_or(self.target.len());
        &self.target[..end]
    }

    /// The query, without its question mark; empty if there is none.
    #[must_use]
    pub fn query(&self) -> &str {
        let query = self.target.split_once('?');
        query.map_or("", |(_, query)| query)
    }

    /// All headers, in order; names are in lower case.
    #[must_use]
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// The value of the first header with this name, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        str::from_utf8(value).ok()
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body, if it is text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        str::from_utf8(&self.body).ok()
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Response {
    /// An answer without headers and body.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Plain text.
    #[must_use]
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        let response = Self::new(status).header("content-type", "text/plain; charset=utf-8");
        response.body(text.into())
    }

    /// JSON, as text.
    #[must_use]
    pub fn json(status: u16, json: impl ToString) -> Self {
        let response = Self::new(status).header("content-type", "application/json");
        response.body(json.to_string())
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// All headers, in order; names are in lower case.
    #[must_use]
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// The bytes of the body.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }
}

/// What [`http!`](crate::http!) needs on WASM.
#[cfg(all(target_arch = "wasm32", feature = "http"))]
#[doc(hidden)]
pub mod guest {
    use wasip2::http::types::{Fields, Method, OutgoingBody, OutgoingResponse};
    use wasip2::io::streams::StreamError;

    pub use wasip2::exports::http::incoming_handler::Guest;
    pub use wasip2::http::proxy::export;
    pub use wasip2::http::types::{IncomingRequest, ResponseOutparam};

    use super::{Request, Response};

    /// Bytes of a request's body; a larger one is answered with 413.
    const BODY_BYTES_MAX: usize = 1 << 20;
    /// Bytes that are read at a time.
    const READ_BYTES: u64 = 64 << 10;
    /// Bytes that are written at a time, which WASI sets.
    const WRITE_BYTES: usize = 4 << 10;

    /// Answers one request.
    pub fn handle(
        request: &IncomingRequest,
        out: ResponseOutparam,
        answer: fn(&Request) -> Response,
    ) {
        let response = match read(request) {
            Ok(request) => answer(&request),
            Err(response) => response,
        };
        give(&response, out);
    }

    /// Reads the whole request, or says what is wrong with it.
    fn read(request: &IncomingRequest) -> Result<Request, Response> {
        let headers = request.headers().entries().into_iter();
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value));
        Ok(Request {
            method: method(request.method()),
            target: request.path_with_query().unwrap_or_default(),
            headers: headers.collect(),
            body: body(request)?,
        })
    }

    fn body(request: &IncomingRequest) -> Result<Vec<u8>, Response> {
        let cut_off = |()| Response::text(400, "the body cannot be read");
        let incoming = request.consume().map_err(cut_off)?;
        let stream = incoming.stream().map_err(cut_off)?;
        let mut body = Vec::new();
        loop {
            match stream.blocking_read(READ_BYTES) {
                Ok(part) => body.extend_from_slice(&part),
                Err(StreamError::Closed) => return Ok(body),
                Err(StreamError::LastOperationFailed(_)) => return Err(cut_off(())),
            }
            if body.len() > BODY_BYTES_MAX {
                return Err(Response::text(413, "the body is too large"));
            }
        }
    }

    fn method(method: Method) -> String {
        let name = match method {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Connect => "CONNECT",
            Method::Options => "OPTIONS",
            Method::Trace => "TRACE",
            Method::Patch => "PATCH",
            Method::Other(name) => return name,
        };
        name.to_owned()
    }

    fn give(response: &Response, out: ResponseOutparam) {
        let fields = Fields::new();
        for (name, value) in response.headers() {
            if fields.append(name, value).is_err() {
                panic!("the answer's header {name:?} cannot be sent");
            }
        }
        let outgoing = OutgoingResponse::new(fields);
        let status = response.status();
        if outgoing.set_status_code(status).is_err() {
            panic!("the answer's status is {status}, which is none");
        }
        let body = outgoing.body().expect("a new response has its body");
        ResponseOutparam::set(out, Ok(outgoing));
        let stream = body.write().expect("a new body has its stream");
        for part in response.bytes().chunks(WRITE_BYTES) {
            // Whoever asked may be gone by now.
            if stream.blocking_write_and_flush(part).is_err() {
                break;
            }
        }
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_path_a_query_and_headers_by_any_spelling() {
        let request = Request::new("GET", "/a/b?c=d?e").with_header("X-Id", "7");
        assert_eq!((request.path(), request.query()), ("/a/b", "c=d?e"));
        assert_eq!(request.header("x-ID"), Some("7"));
        let plain = Request::new("GET", "/a").with_header("bytes", [0xff]);
        assert_eq!((plain.path(), plain.query()), ("/a", ""));
        assert_eq!(plain.header("bytes"), None);
    }
}
