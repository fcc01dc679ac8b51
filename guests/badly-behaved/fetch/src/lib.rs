//! Sends HTTP requests as its messages say, with as little sense as they ask for, and emits what came back.
//!
//! A value is `METHOD URL`, then lines: `!first-byte-ms 100`, `!between-bytes-ms 100` and `!connect-ms 100` are times, `!at-once 5` sends
//! it so often before it reads any answer, `!body-bytes 100` sends a body, and every other line is a header, written as it stands. The
//! output is the status and the body's length and beginning, or `error` and its code.

use millrace_guest::{Message, Outcome, processor};
use wasip2::http::outgoing_handler::handle;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingBody, IncomingResponse, Method,
    OutgoingBody, OutgoingRequest, RequestOptions, Scheme, http_error_code,
};
use wasip2::io::streams::StreamError;

processor!(process);

/// Bytes of an answer's body that are shown.
const SHOWN_BYTES: usize = 200;

/// Bytes that are written to a body at a time.
const WRITE_BYTES: usize = 4_096;

fn process(message: &Message) -> Outcome {
    let text = String::from_utf8_lossy(message.value().unwrap_or_default()).into_owned();
    let mut lines = text.split('\n');
    let (method, url) = lines
        .next()
        .and_then(|line| line.split_once(' '))
        .unwrap_or(("GET", ""));
    let mut asked = Asked {
        method,
        url,
        at_once: 1,
        ..Asked::default()
    };
    for line in lines.filter(|line| !line.is_empty()) {
        match line.strip_prefix('!').and_then(|line| line.split_once(' ')) {
            Some((name, number)) => asked.set(name, number.parse().unwrap_or(0)),
            None => asked
                .headers
                .push(line.split_once(": ").unwrap_or((line, ""))),
        }
    }
    let answer = asked.answer();
    Outcome::Emit(message.output().value(answer.as_bytes()))
}

#[derive(Default)]
struct Asked<'a> {
    method: &'a str,
    url: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    first_byte_ms: Option<u64>,
    between_bytes_ms: Option<u64>,
    connect_ms: Option<u64>,
    body_bytes: usize,
    at_once: u64,
}

impl Asked<'_> {
    fn set(&mut self, name: &str, number: u64) {
        match name {
            "first-byte-ms" => self.first_byte_ms = Some(number),
            "between-bytes-ms" => self.between_bytes_ms = Some(number),
            "connect-ms" => self.connect_ms = Some(number),
            "body-bytes" => self.body_bytes = number as usize,
            "at-once" => self.at_once = number,
            _ => {}
        }
    }

    fn answer(&self) -> String {
        let sent: Vec<_> = (0..self.at_once).map(|_| self.send()).collect();
        let mut answers = Vec::new();
        // All are kept open until all have come.
        let heads: Vec<_> = sent
            .into_iter()
            .map(|sent| sent.and_then(|future| head(&future)))
            .collect();
        for head in heads {
            let answer = head.and_then(|response| read(&response));
            answers.push(answer.unwrap_or_else(|error| format!("error {error}")));
        }
        answers.join("\n")
    }

    fn send(&self) -> Result<FutureIncomingResponse, String> {
        let fields = Fields::new();
        for (name, value) in &self.headers {
            let added = fields.append(&(*name).to_owned(), &value.as_bytes().to_vec());
            added.map_err(|error| format!("header {error:?}"))?;
        }
        let request = OutgoingRequest::new(fields);
        let (scheme, rest) = self.url.split_once("://").ok_or("no scheme")?;
        let (server, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => Scheme::Other(other.to_owned()),
        };
        let method = match self.method {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "HEAD" => Method::Head,
            other => Method::Other(other.to_owned()),
        };
        request.set_scheme(Some(&scheme)).map_err(|()| "scheme")?;
        request.set_authority(Some(server)).map_err(|()| "server")?;
        request
            .set_path_with_query(Some(path))
            .map_err(|()| "path")?;
        request.set_method(&method).map_err(|()| "method")?;
        let options = RequestOptions::new();
        let nanoseconds = |ms: Option<u64>| ms.map(|ms| ms * 1_000_000);
        options
            .set_connect_timeout(nanoseconds(self.connect_ms))
            .map_err(|()| "connect time")?;
        options
            .set_first_byte_timeout(nanoseconds(self.first_byte_ms))
            .map_err(|()| "first byte's time")?;
        options
            .set_between_bytes_timeout(nanoseconds(self.between_bytes_ms))
            .map_err(|()| "time between bytes")?;
        let body = request.body().map_err(|()| "body")?;
        let future = handle(request, Some(options)).map_err(|code| code_name(&code))?;
        self.write(body)?;
        Ok(future)
    }

    fn write(&self, body: OutgoingBody) -> Result<(), String> {
        let stream = body.write().map_err(|()| "stream")?;
        let mut left = self.body_bytes;
        while left > 0 {
            let part = vec![b'x'; left.min(WRITE_BYTES)];
            // Its answer says why.
            if stream.blocking_write_and_flush(&part).is_err() {
                break;
            }
            left -= part.len();
        }
        drop(stream);
        // Likewise.
        let _ = OutgoingBody::finish(body, None);
        Ok(())
    }
}

fn head(future: &FutureIncomingResponse) -> Result<IncomingResponse, String> {
    future.subscribe().block();
    let answer = future.get().ok_or("not ready")?;
    answer
        .map_err(|()| "read twice")?
        .map_err(|code| code_name(&code))
}

fn read(response: &IncomingResponse) -> Result<String, String> {
    let status = response.status();
    let body: IncomingBody = response.consume().map_err(|()| "body")?;
    let stream = body.stream().map_err(|()| "stream")?;
    let mut bytes = Vec::new();
    let mut length = 0;
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(part) => {
                length += part.len();
                let room = SHOWN_BYTES.saturating_sub(bytes.len());
                bytes.extend_from_slice(&part[..part.len().min(room)]);
            }
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(error)) => {
                let code = http_error_code(&error);
                let code = code.as_ref().map_or("unknown".to_owned(), code_name);
                return Err(format!("{code} after {length} bytes"));
            }
        }
    }
    let shown = String::from_utf8_lossy(&bytes);
    Ok(format!("{status} {length} {shown}"))
}

fn code_name(code: &ErrorCode) -> String {
    format!("{code:?}")
}
