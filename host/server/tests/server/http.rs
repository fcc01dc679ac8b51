//! HTTP on a real host: what the interface promises, and how nonsense is answered.

use std::time::{Duration, Instant};

use crate::support::TestHost;
use serde_json::json;

const MESSAGES: &str = "/v1/topics/orders/messages";
const FETCH: &str = "/v1/topics/orders/partitions/0/messages";

#[test]
fn a_topic_is_made_once_shown_and_deleted() {
    let host = TestHost::start();
    let body = r#"{"name":"orders","partitions":3}"#;
    let made = host.post_json("/v1/topics", body);
    assert_eq!(made.status, 201);
    assert_eq!(made.json()["durability"], "durable");
    assert_eq!(host.post_json("/v1/topics", body).status, 200);
    let differs = host.post_json("/v1/topics", r#"{"name":"orders","partitions":4}"#);
    differs.refused(409, "topic-exists");

    let shown = host.get("/v1/topics/orders").json();
    assert_eq!(
        shown["ends"][2],
        json!({"partition": 2, "start": 0, "end": 0, "messages": 0})
    );
    assert_eq!(host.get("/v1/topics").json()["topics"][0]["name"], "orders");
    assert_eq!(
        host.call("DELETE", "/v1/topics/orders", &[], "").status,
        204
    );
    host.get("/v1/topics/orders").refused(404, "unknown-topic");
}

#[test]
fn json_messages_are_read_back_as_they_were_sent() {
    let host = TestHost::start().with_topic("orders", 1);
    let one = host.post_json(
        MESSAGES,
        r#"{"key":"k","value":"text","headers":{"a":"1"},"timestamp":5}"#,
    );
    assert_eq!(
        one.json(),
        json!({"count": 1, "placed": [{"partition": 0, "offset": 0}]})
    );
    let many = r#" { "messages" : [{"value":{"a": [1, 2]}},{"value_base64":"/w=="},{"key":"gone","value":null}]}"#;
    assert_eq!(host.post_json(MESSAGES, many).json()["count"], 3);

    let fetched = host.get(FETCH).json();
    let messages = &fetched["messages"];
    assert_eq!(
        messages[0],
        json!({"partition": 0, "offset": 0, "timestamp": 5, "key": "k", "value": "text", "headers": {"a": "1"}})
    );
    assert_eq!(messages[1]["value"], r#"{"a":[1,2]}"#);
    assert_eq!(messages[2]["value_base64"], "/w==");
    assert_eq!(messages[3]["value"], json!(null));
    assert_eq!((&fetched["next"], &fetched["end"]), (&json!(4), &json!(4)));
}

#[test]
fn lines_are_one_commit_or_none() {
    let host = TestHost::start().with_topic("orders", 1);
    let lines = |body: &str| {
        host.call(
            "POST",
            MESSAGES,
            &[("content-type", "application/x-ndjson; charset=utf-8")],
            body,
        )
    };
    let told = lines("{\"value\":\"a\"}\n\n{\"valeu\":\"b\"}\n").refused(400, "malformed");
    assert!(
        told.starts_with("line 3: ") && told.contains("did you mean `value`?"),
        "{told}"
    );
    assert_eq!(host.get(FETCH).json()["end"], 0);
    assert_eq!(
        lines("{\"value\":\"a\"}\r\n\n{\"value\":\"b\"}").json()["count"],
        2
    );
    lines("\n\n").refused(400, "malformed");
}

#[test]
fn a_raw_body_is_one_value() {
    let host = TestHost::start().with_topic("orders", 2);
    let headers = [
        ("content-type", "application/octet-stream"),
        ("millrace-header-source", "camera"),
    ];
    let answer = host.call(
        "POST",
        &format!("{MESSAGES}?key=k%20k&partition=1"),
        &headers,
        vec![0xff, 0, 1],
    );
    assert_eq!(
        answer.json()["placed"],
        json!([{"partition": 1, "offset": 0}])
    );
    let path = "/v1/topics/orders/partitions/1/messages";
    let message = &host.get(path).json()["messages"][0];
    assert_eq!(
        (&message["key"], &message["value_base64"]),
        (&json!("k k"), &json!("/wAB"))
    );
    assert_eq!(message["headers"], json!({"source": "camera"}));
    let value = host.get(&format!("{path}/0/value"));
    assert_eq!(value.bytes, [0xff, 0, 1]);
    assert_eq!(value.headers["content-disposition"], "attachment");
    assert_eq!(value.headers["x-content-type-options"], "nosniff");
    host.get(&format!("{path}/7/value"))
        .refused(404, "unknown-message");
}

#[test]
fn a_fetch_begins_and_ends_where_it_is_told() {
    let host = TestHost::start().with_topic("orders", 1);
    let body: String = (0..10)
        .map(|n| format!("{{\"value\":\"{n}\"}}\n"))
        .collect();
    host.call(
        "POST",
        MESSAGES,
        &[("content-type", "application/x-ndjson")],
        body,
    );
    let some = host.get(&format!("{FETCH}?from=4&max=2")).json();
    let values: Vec<_> = some["messages"]
        .as_array()
        .expect("messages")
        .iter()
        .map(|m| &m["value"])
        .collect();
    assert_eq!(values, ["4", "5"]);
    assert_eq!(some["next"], 6);
    assert_eq!(host.get(&format!("{FETCH}?from=latest")).json()["next"], 10);
    let lines = host.call(
        "GET",
        &format!("{FETCH}?from=8"),
        &[("accept", "application/x-ndjson")],
        "",
    );
    assert_eq!(lines.headers["content-type"], "application/x-ndjson");
    assert_eq!(String::from_utf8_lossy(&lines.bytes).lines().count(), 2);

    host.get(&format!("{FETCH}?from=11"))
        .refused(404, "offset-past-end");
    host.get(&format!("{FETCH}?from=first"))
        .refused(400, "malformed");
    let told = host
        .get(&format!("{FETCH}?form=1"))
        .refused(400, "malformed");
    assert!(told.contains("did you mean `from`?"), "{told}");
    host.get("/v1/topics/orders/partitions/1/messages")
        .refused(404, "unknown-partition");
    host.get("/v1/topics/orders/partitions/x/messages")
        .refused(400, "malformed");
}

#[test]
fn a_waiting_fetch_is_woken_by_the_message() {
    let host = TestHost::start().with_topic("orders", 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let answer = host.get(&format!("{FETCH}?wait_ms=30000")).json();
            (answer, Instant::now())
        });
        // The wait need not have begun: if the message comes first, the fetch finds it at once.
        std::thread::sleep(Duration::from_millis(100));
        let sent = Instant::now();
        host.post_json(MESSAGES, r#"{"value":"now"}"#);
        let (answer, woken) = waiting.join().expect("an answer");
        assert_eq!(answer["messages"][0]["value"], "now");
        assert!(woken - sent < Duration::from_secs(10));
    });
}

#[test]
fn a_fetch_that_waits_in_vain_answers_with_nothing() {
    let host = TestHost::start().with_topic("orders", 1);
    let answer = host.get(&format!("{FETCH}?wait_ms=50"));
    assert_eq!(
        (answer.status, &answer.json()["messages"]),
        (200, &json!([]))
    );
}

#[test]
fn a_host_that_stops_keeps_no_fetch_waiting() {
    let host = TestHost::start().with_topic("orders", 1);
    let url = format!("{}{FETCH}?wait_ms=30000", host.url());
    let (sender, started) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        sender.send(()).expect("a listener");
        ureq::get(&url)
            .call()
            .map(|response| response.status().as_u16())
    });
    started.recv().expect("started");
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    host.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(waiting.join().expect("an answer").expect("answered"), 200);
}

#[test]
fn malformed_json_is_answered_with_its_place() {
    let host = TestHost::start().with_topic("orders", 1);
    let told = host
        .post_json(MESSAGES, "{\"value\":\n  nope}")
        .refused(400, "malformed");
    assert!(told.contains("line 2 column"), "{told}");
    let told = host
        .post_json(MESSAGES, r#"{"messages":[{"value":1},{"partition":"x"}]}"#)
        .refused(400, "malformed");
    assert!(told.contains("messages[1].partition"), "{told}");
    let deep = "[".repeat(100_000);
    host.post_json(MESSAGES, format!(r#"{{"value":{deep}"#))
        .refused(400, "malformed");
    host.post_json(MESSAGES, r#"{"value":"a"} x"#)
        .refused(400, "malformed");
    host.post_json(
        MESSAGES,
        [b"{\"value\":\"".as_slice(), &[0xff, 0xfe], b"\"}"].concat(),
    )
    .refused(400, "malformed");
    host.post_json(MESSAGES, "").refused(400, "malformed");
    host.post_json(MESSAGES, "[]").refused(400, "malformed");
    host.post_json(MESSAGES, r#"{"key":"a","key":"b"}"#)
        .refused(400, "malformed");
    assert_eq!(host.get(FETCH).json()["end"], 0);
}

#[test]
fn what_does_not_exist_is_said_not_to() {
    let host = TestHost::start();
    host.post_json("/v1/topics/nothing/messages", r#"{"value":"a"}"#)
        .refused(404, "unknown-topic");
    host.get("/v1/modules/nothing@1")
        .refused(404, "unknown-module");
    host.get("/v1/processors/nobody")
        .refused(404, "unknown-processor");
    host.get("/v1/processors/nobody/logs")
        .refused(404, "unknown-processor");
    host.get("/v1/processors/nobody/dead-letters")
        .refused(404, "unknown-processor");
    host.post_json("/v1/processors/nobody/pause", "")
        .refused(404, "unknown-processor");
    host.post_json("/v1/processors/nobody/rollback", "")
        .refused(404, "unknown-processor");
    host.call("DELETE", "/v1/processors/nobody", &[], "")
        .refused(404, "unknown-processor");
    host.call("DELETE", "/v1/modules/nothing", &[], "")
        .refused(404, "unknown-module");
    host.get("/v1/nothing").refused(404, "unknown-route");
    host.call("PUT", "/v1/topics", &[], "x")
        .refused(405, "unknown-method");
}

#[test]
fn bad_names_and_fields_are_refused_with_what_would_be_right() {
    let host = TestHost::start();
    for name in ["", "a b", "../etc", "..", "__ours", "ü"] {
        let body = json!({"name": name}).to_string();
        host.post_json("/v1/topics", body).refused(400, "malformed");
    }
    let long = "x".repeat(250);
    host.post_json("/v1/topics", format!(r#"{{"name":"{long}"}}"#))
        .refused(400, "malformed");
    for path in ["..%2fetc", "a%00b", "%c0%ae"] {
        host.get(&format!("/v1/topics/{path}"))
            .refused(400, "malformed");
    }
    let told = host
        .post_json("/v1/topics", r#"{"name":"a","partitoins":2}"#)
        .refused(400, "malformed");
    assert!(told.contains("did you mean `partitions`?"), "{told}");
    host.post_json("/v1/topics", r#"{"name":"a","partitions":0}"#)
        .refused(422, "bad-partitions");
    host.post_json("/v1/topics", r#"{"name":"a","partitions":100001}"#)
        .refused(422, "bad-partitions");
    host.post_json("/v1/topics", r#"{"name":"a","partitioner":"no@1"}"#)
        .refused(404, "unknown-module");

    let put = |body: &str| host.call("PUT", "/v1/processors/p", &[], body);
    let told = put(r#"{"topics":["a"],"modul":"x"}"#).refused(400, "malformed");
    assert!(told.contains("did you mean `module`?"), "{told}");
    let told =
        put(r#"{"topics":["a"],"module":"x","retry":{"attempts":1}}"#).refused(400, "malformed");
    assert!(
        told.contains("retry") && told.contains("did you mean `attempts_max`?"),
        "{told}"
    );
    put(r#"{"topics":["a"],"module":"x"}"#).refused(404, "unknown-module");
    let redrive = |body: &str| host.post_json("/v1/processors/p/dead-letters/redrive", body);
    redrive("{}").refused(400, "malformed");
    redrive(r#"{"all":true}"#).refused(404, "unknown-processor");
}

#[test]
fn what_is_too_large_is_refused_and_the_host_goes_on() {
    let host = TestHost::start().with_topic("orders", 1);
    let raw = [("content-type", "application/octet-stream")];
    let message = host.call("POST", MESSAGES, &raw, vec![b'x'; (8 << 20) + 1]);
    message.refused(413, "too-large");
    // Only the announcement of a body: the refusal comes before it is sent.
    let head = format!(
        "POST {MESSAGES} HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\ncontent-length: 99999999999\r\n\r\n"
    );
    let answer = host.raw(head.as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("too-large"),
        "{answer}"
    );
    let heads = "x: y\r\n".repeat(200);
    let answer =
        host.raw(format!("GET /health/live HTTP/1.1\r\nhost: localhost\r\n{heads}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(host.post_json(MESSAGES, r#"{"value":"ok"}"#).status, 200);
}

#[test]
fn bytes_that_are_no_component_are_refused() {
    let host = TestHost::start();
    let upload = |body: &[u8]| {
        host.call(
            "POST",
            "/v1/modules?tag=a@1",
            &[("content-type", "application/wasm")],
            body,
        )
    };
    upload(b"no wasm at all").refused(422, "not-a-component");
    upload(b"\0asm\x01\0\0\0").refused(422, "not-a-component");
    host.call("POST", "/v1/modules?tga=a@1", &[], "x")
        .refused(400, "malformed");
    let many = upload(&vec![0; (64 << 20) + 1]);
    many.refused(413, "too-large");
    assert_eq!(host.get("/v1/modules").json()["modules"], json!([]));
}

#[test]
fn a_page_of_another_site_gets_nothing() {
    let host = TestHost::start();
    for header in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("host", "evil.example"),
    ] {
        host.call("GET", "/v1/topics", &[header], "")
            .refused(403, "foreign-caller");
    }
    assert_eq!(
        host.call(
            "GET",
            "/v1/topics",
            &[("origin", "http://localhost:3000")],
            ""
        )
        .status,
        200
    );
}

#[test]
fn every_answer_has_a_request_id_and_keeps_a_given_one() {
    let host = TestHost::start();
    let first = host.get("/health/live").headers["x-request-id"].clone();
    assert_ne!(first, host.get("/health/live").headers["x-request-id"]);
    let given = host.call("GET", "/nothing", &[("x-request-id", "mine-1")], "");
    assert_eq!(given.headers["x-request-id"], "mine-1");
    let long = "x".repeat(100);
    assert_ne!(
        host.call("GET", "/nothing", &[("x-request-id", &long)], "")
            .headers["x-request-id"],
        long
    );
}

#[test]
fn health_metrics_and_openapi_are_there() {
    let host = TestHost::start().with_topic("orders", 1);
    assert_eq!(host.get("/health/live").json()["status"], "live");
    assert_eq!(host.get("/health/ready").json()["status"], "ready");
    host.post_json(MESSAGES, r#"{"value":"a"}"#);
    let metrics = host.get("/metrics");
    let text = String::from_utf8_lossy(&metrics.bytes).into_owned();
    assert!(
        text.contains("millrace_publish_seconds_bucket{le=\"0.001\"}"),
        "{text}"
    );
    assert!(
        text.contains("millrace_messages_in_total{topic=\"orders\"}"),
        "{text}"
    );
    let document = host.get("/openapi.json").json();
    assert!(
        document["paths"]["/v1/topics"]["post"].is_object(),
        "{document}"
    );
}

#[test]
fn a_timestamp_that_cannot_be_stored_is_refused_not_changed() {
    let host = TestHost::start().with_topic("orders", 1);
    // It can be stored, although it is far from any real time.
    let largest = r#"{"value":1,"timestamp":9223372036854775807}"#;
    let largest = host.post_json(MESSAGES, largest);
    largest.refused(422, "timestamp-ahead");
    for wrong in ["9223372036854775808", "1.5", "-1", "1e3"] {
        let body = format!("{{\"value\":1,\"timestamp\":{wrong}}}");
        host.post_json(MESSAGES, body).refused(400, "malformed");
    }
    assert_eq!(host.get(FETCH).json()["messages"], json!([]));
}

#[test]
fn a_list_is_no_message_and_the_error_says_so() {
    let host = TestHost::start().with_topic("orders", 1);
    for body in [
        r#"["k",null,"v",null,null,null,null,null]"#,
        r#"[{"value":1}]"#,
    ] {
        let text = host.post_json(MESSAGES, body).refused(400, "malformed");
        assert!(text.contains("a list, not an object"), "{text}");
    }
}

#[test]
fn an_error_of_a_line_names_that_line_only() {
    let host = TestHost::start().with_topic("orders", 1);
    let headers = [("content-type", "application/x-ndjson")];
    let answer = host.call(
        "POST",
        MESSAGES,
        &headers,
        "{\"value\":1}\r\n\r\n{\"value\":}\n",
    );
    let text = answer.refused(400, "malformed");
    assert!(text.starts_with("line 3: "), "{text}");
    assert!(!text.contains("line 1"), "{text}");
}

#[test]
fn a_byte_order_mark_before_json_is_skipped() {
    let host = TestHost::start().with_topic("orders", 1);
    for (kind, body) in [
        (
            "application/json",
            "\u{feff}{\"messages\":[{\"value\":\"a\"}]}",
        ),
        ("application/x-ndjson", "\u{feff}{\"value\":\"a\"}\n"),
    ] {
        let answer = host.call("POST", MESSAGES, &[("content-type", kind)], body);
        assert_eq!(answer.status, 200, "{kind}");
    }
}

#[test]
fn a_key_in_the_query_that_is_not_utf8_is_refused_not_changed() {
    let host = TestHost::start().with_topic("orders", 1);
    let raw = [("content-type", "text/plain")];
    let answer = host.call("POST", &format!("{MESSAGES}?key=%ff"), &raw, "raw");
    answer.refused(400, "malformed");
    let answer = host.call("POST", &format!("{MESSAGES}?key=%C3%A9+%25"), &raw, "raw");
    assert_eq!(answer.status, 200);
    assert_eq!(host.get(FETCH).json()["messages"][0]["key"], "é %");
}

#[test]
fn a_second_host_or_origin_header_is_checked_as_well() {
    let host = TestHost::start();
    for (second, status) in [
        ("Host: evil.example", 400),
        (
            "Origin: http://localhost\r\nOrigin: http://evil.example",
            403,
        ),
    ] {
        let head = format!("GET /health/live HTTP/1.1\r\nHost: localhost\r\n{second}\r\n");
        let answer = host.raw(format!("{head}Connection: close\r\n\r\n").as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
}
