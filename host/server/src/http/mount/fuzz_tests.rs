//! Answers of components with any status, headers and parts, over a real connection: what a caller reads is valid HTTP, one answer after
//! the other, and a part is never taken for the whole. `MILLRACE_FUZZ_SECONDS` makes it go on for longer, from a seed of its own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fastrand::Rng;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Connections in an ordinary test.
const RUNS: u64 = 2_000;

/// Longer than any answer here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a component answers, before it is sent.
#[derive(Clone, Debug)]
struct Said {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    parts: Vec<Vec<u8>>,
    is_whole: bool,
}

/// What a caller reads.
#[derive(Debug)]
struct Read {
    status: u16,
    body: Vec<u8>,
    is_whole: bool,
}

#[tokio::test]
async fn no_answer_of_a_component_is_invalid_http_or_a_part_taken_for_the_whole() {
    let seconds = std::env::var("MILLRACE_FUZZ_SECONDS").ok();
    let time = seconds.and_then(|seconds| seconds.parse().ok());
    let time = time.map(Duration::from_secs);
    let (start, seed) = (Instant::now(), time.map_or(7, |_| fastrand::u64(..)));
    let mut rng = Rng::with_seed(seed);
    let goes_on = |runs: u64| time.map_or(runs < RUNS, |time| start.elapsed() < time);
    let (mut runs, mut whole) = (0_u64, 0_u64);
    while goes_on(runs) {
        let said = [any_answer(&mut rng), any_answer(&mut rng)];
        let is_head = [rng.u32(..8) == 0, rng.u32(..8) == 0];
        let bytes = timeout(PATIENCE, exchanged(&said, is_head)).await;
        let bytes = bytes.unwrap_or_else(|_| panic!("seed {seed}, run {runs}: no end of {said:?}"));
        match checked(&bytes, &said, is_head) {
            Ok(count) => whole += count,
            Err(why) => panic!(
                "seed {seed}, run {runs}: {why}\n{said:?} {is_head:?}\n{}",
                String::from_utf8_lossy(&bytes)
            ),
        }
        runs += 1;
    }
    println!("{runs} connections from seed {seed}, {whole} whole answers");
    assert!(whole > runs / 10, "only {whole} of {runs}");
}

/// Everything that comes over one connection on which both are asked for.
async fn exchanged(said: &[Said; 2], is_head: [bool; 2]) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(64 << 10);
    let left: VecDeque<Said> = said.iter().cloned().collect();
    let left = Arc::new(Mutex::new(left));
    let service = service_fn(move |_| {
        let next = left
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        async move {
            let response = next.and_then(|said| answered(sent(said)));
            Ok::<_, Infallible>(response.unwrap_or_else(refused))
        }
    });
    let serving = tokio::spawn(async move {
        // How it ends is what the caller sees.
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(server), service)
            .await;
    });
    let method = |is_head| if is_head { "HEAD" } else { "GET" };
    let [first, second] = is_head.map(method);
    let asked = format!(
        "{first} /1 HTTP/1.1\r\nhost: x\r\n\r\n{second} /2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    );
    let (mut reading, mut writing) = tokio::io::split(client);
    // The first answer may have ended the connection.
    let _ = writing.write_all(asked.as_bytes()).await;
    let mut bytes = Vec::new();
    let _ = reading.read_to_end(&mut bytes).await;
    serving.await.expect("serving does not panic");
    bytes
}

/// The answer as it comes from the component's call.
fn sent(said: Said) -> HttpAnswer {
    let (sender, body) = mpsc::channel(HTTP_BODY_PARTS_MAX);
    let headers = said.headers.into_iter();
    let (parts, is_whole) = (said.parts, said.is_whole);
    tokio::spawn(async move {
        for part in parts {
            if sender.send(HttpPart::Bytes(part.into())).await.is_err() {
                return;
            }
        }
        if is_whole {
            let _ = sender.send(HttpPart::End).await;
        }
    });
    HttpAnswer {
        status: said.status,
        headers: headers
            .map(|(name, value)| (name, Bytes::from(value)))
            .collect(),
        body,
    }
}

fn refused() -> Response {
    let mut response = Response::new(Body::from("refused"));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

/// How many of the answers came whole; or what is wrong with the bytes.
fn checked(bytes: &[u8], said: &[Said; 2], is_head: [bool; 2]) -> Result<u64, String> {
    let (mut rest, mut whole) = (bytes, 0);
    for (said, is_head) in said.iter().zip(is_head) {
        if rest.is_empty() {
            // The connection ended with the answer before.
            return Ok(whole);
        }
        let read = read_one(&mut rest, is_head)?;
        if !read.is_whole && !rest.is_empty() {
            return Err("something follows an answer that was cut off".to_owned());
        }
        let is_refused = read.status == 502 && read.body == b"refused";
        if is_refused || read.status == 502 && is_head {
            continue;
        }
        if read.status != said.status {
            return Err(format!("status {} for {}", read.status, said.status));
        }
        let body = said.parts.concat();
        if !body.starts_with(&read.body) {
            return Err("the body is another one".to_owned());
        }
        let gives_length = said
            .headers
            .iter()
            .any(|(name, _)| name == "content-length");
        let has_body = !is_head && !matches!(read.status, 204 | 205 | 304);
        if has_body && read.is_whole && !gives_length && (!said.is_whole || read.body != body) {
            return Err("a part was taken for the whole".to_owned());
        }
        if read.is_whole {
            whole += 1;
        }
    }
    match rest.is_empty() {
        true => Ok(whole),
        false => Err("something follows the last answer".to_owned()),
    }
}

/// Reads one answer as a strict client does.
fn read_one(rest: &mut &[u8], is_head: bool) -> Result<Read, String> {
    let end = rest.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else {
        return Err("a head without end".to_owned());
    };
    let head = &rest[..end];
    *rest = &rest[end + 4..];
    let mut lines = head.split(|byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    let status = line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|line| line.get(..3)?.parse::<u16>().ok());
    let status = status.ok_or_else(|| format!("{line:?} is no status line"))?;
    let (mut length, mut is_chunked) = (None, false);
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.ok_or("a line without a colon")?);
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(&value[1..]).trim().to_owned();
        if name.is_empty()
            || !name.bytes().all(|byte| byte.is_ascii_graphic())
            || line.contains(&b'\r')
        {
            return Err(format!("{name:?} is no name"));
        }
        match name.as_str() {
            "content-length" => {
                let parsed: u64 = value.parse().map_err(|_| format!("a length {value:?}"))?;
                if length.replace(parsed).is_some() {
                    return Err("two lengths".to_owned());
                }
            }
            "transfer-encoding" if value == "chunked" && !is_chunked => is_chunked = true,
            "transfer-encoding" => return Err(format!("transfer-encoding {value:?}")),
            _ => {}
        }
    }
    if is_chunked && length.is_some() {
        return Err("a length and chunks".to_owned());
    }
    if is_head || matches!(status, 204 | 304) {
        return Ok(Read {
            status,
            body: Vec::new(),
            is_whole: true,
        });
    }
    let (body, is_whole) = match (is_chunked, length) {
        (true, _) => chunks(rest)?,
        (false, Some(length)) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let there = length.min(rest.len());
            let body = rest[..there].to_vec();
            *rest = &rest[there..];
            (body, there == length)
        }
        // To the end of the connection.
        (false, None) => (std::mem::take(rest).to_vec(), true),
    };
    Ok(Read {
        status,
        body,
        is_whole,
    })
}

/// A body in chunks, and whether its end came.
fn chunks(rest: &mut &[u8]) -> Result<(Vec<u8>, bool), String> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            return Ok((body, false));
        };
        let size = String::from_utf8_lossy(&rest[..end]).into_owned();
        let size = usize::from_str_radix(&size, 16).map_err(|_| format!("a chunk {size:?}"))?;
        *rest = &rest[end + 2..];
        if rest.len() < size + 2 {
            body.extend_from_slice(&rest[..size.min(rest.len())]);
            *rest = &[];
            return Ok((body, false));
        }
        body.extend_from_slice(&rest[..size]);
        if &rest[size..size + 2] != b"\r\n" {
            return Err("a chunk without end".to_owned());
        }
        *rest = &rest[size + 2..];
        if size == 0 {
            return Ok((body, true));
        }
    }
}

fn any_answer(rng: &mut Rng) -> Said {
    let statuses = [200, 200, 200, 201, 204, 205, 206, 304, 404, 502, 599];
    let status = match rng.u32(..4) {
        0 => rng.u16(..1_200),
        1 => [100, 101, 103, 999, 0, 99, 1_000][rng.usize(..7)],
        _ => statuses[rng.usize(..statuses.len())],
    };
    let parts = (0..rng.usize(..6)).map(|_| vec![rng.u8(b'a'..=b'z'); rng.usize(..20)]);
    let parts: Vec<Vec<u8>> = parts.collect();
    let bytes: usize = parts.iter().map(Vec::len).sum();
    Said {
        status,
        headers: (0..rng.usize(..4))
            .map(|_| any_header(rng, bytes))
            .collect(),
        parts,
        is_whole: rng.u32(..4) > 0,
    }
}

fn any_header(rng: &mut Rng, bytes: usize) -> (String, Vec<u8>) {
    let names = [
        "content-length",
        "content-length",
        "transfer-encoding",
        "connection",
        "trailer",
        "upgrade",
        "te",
        "date",
        "content-type",
        "x-any",
        "X-Upper",
        "",
        "x y",
        "x\r\ny",
        "host",
        "set-cookie",
    ];
    let values = [
        "",
        "0",
        "5",
        "18446744073709551616",
        "-1",
        "+3",
        "5, 5",
        "chunked",
        "gzip, chunked",
        "close",
        "keep-alive",
        "x\r\ny: z",
        "\0",
        "h\u{e4}",
    ];
    let value = match rng.u32(..4) {
        0 => bytes.to_string(),
        1 => (bytes + rng.usize(..3)).saturating_sub(1).to_string(),
        _ => values[rng.usize(..values.len())].to_owned(),
    };
    (
        names[rng.usize(..names.len())].to_owned(),
        value.into_bytes(),
    )
}
