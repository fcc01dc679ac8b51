//! Everything that the SDK for Rust has for routes, in one answer: tests/languages/templates --probe.

use std::time::Duration;

use millrace_guest::http;
use millrace_guest::http::{Request, Response};
use millrace_guest::producer::{self, Outgoing, SendError};
use millrace_guest::views::{View, ViewError};

http!(answer);

fn answer(request: &Request) -> Response {
    if request.method() == "POST" {
        let (path, query) = (request.path(), request.query());
        let name = request.header("X-Name").unwrap_or_default();
        let size = request.body().len();
        return Response::text(200, format!("POST {path} {query} {name} {size}"));
    }
    let view = View::of("counts");
    let ada = view.get("ada").expect("read").expect("a value");
    let number = i64::from_le_bytes(ada.try_into().expect("a number"));
    let bob = view.get("bob").expect("read").map_or("none", |_| "some");
    let partitions = view.partitions().expect("read");
    let page = view.scan(0, b"a", None, 1).expect("read");
    let first = String::from_utf8_lossy(&page.entries[0].key).into_owned();
    let last = view.scan(0, b"a", Some(b"ada"), 10).expect("read");
    let messages = [
        Outgoing::new("v")
            .header("h", "w")
            .partition(1)
            .timestamp(5)
            .deliver_at(9_999_999_999_999),
        Outgoing::tombstone("k"),
    ];
    let sent = producer::send("t", &messages).expect("sent");
    let placed: Vec<String> = sent
        .places
        .iter()
        .map(|place| {
            let offset = place
                .offset
                .map_or("later".to_owned(), |offset| offset.to_string());
            format!("{}:{offset}", place.partition)
        })
        .collect();
    let settled =
        producer::settled("counts", "t", &sent, Duration::from_millis(5)).expect("settled");
    let other_view = match View::of("others").get("ada") {
        Err(ViewError::NotGranted(_)) => "not-granted",
        _ => "granted",
    };
    let other_topic = match producer::send("others", &messages) {
        Err(SendError::NotGranted(_)) => "not-granted",
        _ => "granted",
    };
    let text = format!(
        "number {number}, bob {bob}, partitions {partitions}, first {first}, more {}, last {} {}, placed {}, settled {settled}, other view {other_view}, other topic {other_topic}",
        page.has_more,
        last.entries.len(),
        last.has_more,
        placed.join(" "),
    );
    Response::text(200, text).header("X-Probe", "yes")
}
