//! HTTP requests and answers as a whole: what the guests of routes share.

pub mod encoding;

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::StreamError;

/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes that are read or written at a time.
const PART_BYTES: usize = 16 << 10;

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Received {
    /// The first header with this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_slice())
    }

    /// Whether the body is a form.
    #[must_use]
    pub fn is_form(&self) -> bool {
        let content_type = self.header("content-type").unwrap_or_default();
        content_type
            .to_ascii_lowercase()
            .starts_with(b"application/x-www-form-urlencoded")
    }
}

/// The query, without its question mark.
#[must_use]
pub fn query(request: &IncomingRequest) -> String {
    let target = request.path_with_query().unwrap_or_default();
    let query = target.split_once('?').map(|(_, query)| query.to_owned());
    query.unwrap_or_default()
}

/// Reads the whole request.
///
/// # Errors
/// The answer that says what is wrong with it.
pub fn read(request: &IncomingRequest) -> Result<Received, Answer> {
    let headers = request.headers().entries().into_iter();
    let headers = headers
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    let cut_off = |()| Answer::new(400, "the body cannot be read");
    let incoming = request.consume().map_err(cut_off)?;
    let stream = incoming.stream().map_err(cut_off)?;
    let mut body = Vec::new();
    loop {
        match stream.blocking_read(PART_BYTES as u64) {
            Ok(part) => body.extend_from_slice(&part),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(_)) => return Err(cut_off(())),
        }
        if body.len() > BODY_BYTES_MAX {
            return Err(Answer::new(413, "the body is too large"));
        }
    }
    Ok(Received {
        target: request.path_with_query().unwrap_or_default(),
        headers,
        body,
    })
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    content_type: &'static str,
    text: String,
}

impl Answer {
    /// Plain text.
    #[must_use]
    pub fn new(status: u16, text: &str) -> Self {
        Self::of_type(status, "text/plain; charset=utf-8", text)
    }

    /// Text of another type.
    #[must_use]
    pub fn of_type(status: u16, content_type: &'static str, text: &str) -> Self {
        Self {
            status,
            content_type,
            text: text.to_owned(),
        }
    }

    /// Gives the answer. Whoever asked may be gone by now.
    ///
    /// # Panics
    /// If the status is none.
    pub fn give(self, out: ResponseOutparam) {
        let headers = Fields::new();
        let content_type = self.content_type.as_bytes().to_vec();
        headers
            .append(&"content-type".to_owned(), &content_type)
            .expect("a plain header");
        let response = OutgoingResponse::new(headers);
        response.set_status_code(self.status).expect("a status");
        let body = response.body().expect("its body");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("its stream");
        // One write takes at most 4 KiB.
        for part in self.text.as_bytes().chunks(4_096) {
            if stream.blocking_write_and_flush(part).is_err() {
                break;
            }
        }
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
