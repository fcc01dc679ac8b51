//! Input formats: text, content types and codings are read in the same way by every route, and
//! nothing is stored that its sender did not mean.

use std::io::Write;
use std::process::{Output, Stdio};

use millrace_model::Compression;
use serde_json::{Value, json};

use crate::processing::with_uppercase;
use crate::support::{Answer, TestHost, program};

const MESSAGES: &str = "/v1/topics/orders/messages";

fn host() -> TestHost {
    TestHost::start().with_topic("orders", 1)
}

fn send(host: &TestHost, content_type: &str, body: &[u8]) -> Answer {
    let headers = [("content-type", content_type)];
    host.call("POST", MESSAGES, &headers, body)
}

/// All values of the topic.
fn values(host: &TestHost, topic: &str) -> Vec<Value> {
    let path = format!("/v1/topics/{topic}/partitions/0/messages?max=1000");
    let answer = host.get(&path).json();
    let messages = answer["messages"].as_array().expect("messages").iter();
    let value = |message: &Value| match &message["value_base64"] {
        Value::Null => message["value"].clone(),
        encoded => json!([encoded]),
    };
    messages.map(value).collect()
}

fn millrace(host: &TestHost, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = program()
        .args(arguments)
        .env("MILLRACE_HOST", host.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // It may end before it has read everything.
    let _ = child.stdin.take().expect("an input").write_all(input);
    child.wait_with_output().expect("it ends")
}

fn utf16(text: &str) -> Vec<u8> {
    let units = format!("\u{feff}{text}");
    units.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn text_as_windows_writes_it_is_read_alike_at_every_door() {
    let host = host();
    let lines = "\u{feff}a\r\n\r\nb\rb\r\nc".as_bytes();
    let done = millrace(&host, &["produce", "orders", "--file", "-"], lines);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(values(&host, "orders"), ["a", "", "b\rb", "c"]);

    let json = "\u{feff}{\"value\":\"d\"}\r\n\r\n{\"value\":\"e\"}".as_bytes();
    let done = millrace(
        &host,
        &["produce", "orders", "--ndjson", "--file", "-"],
        json,
    );
    assert!(done.status.success(), "{done:?}");
    assert_eq!(send(&host, "application/x-ndjson", json).status, 200);
    assert_eq!(values(&host, "orders")[4..], ["d", "e", "d", "e"]);
    let blank = millrace(
        &host,
        &["produce", "orders", "--ndjson", "--file", "-"],
        b"\r\n\n",
    );
    assert!(blank.status.success(), "{blank:?}");

    // Bytes that are declared as one message stay unchanged.
    assert_eq!(send(&host, "text/plain", b"\xef\xbb\xbff\r\n").status, 200);
    assert_eq!(values(&host, "orders")[8..], ["\u{feff}f\r\n"]);
}

#[test]
fn utf16_is_refused_by_name_at_every_door() {
    let host = host();
    for lines in [
        &["produce", "orders", "--file", "-"][..],
        &["produce", "orders", "--ndjson", "--file", "-"],
    ] {
        for text in [utf16("{\"value\":1}\r\n"), utf16("a\r\nb")[2..].to_vec()] {
            let refused = millrace(&host, lines, &text);
            let told = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(2), "{told}");
            assert!(told.contains("UTF-16") && told.contains("iconv"), "{told}");
        }
    }
    for kind in ["application/json", "application/x-ndjson"] {
        let told = send(&host, kind, &utf16("{\"value\":1}")).refused(400, "malformed");
        assert!(told.contains("UTF-16"), "{told}");
        let kind = format!("{kind}; charset=utf-16le");
        send(&host, &kind, &utf16("{\"value\":1}")[2..]).refused(415, "unsupported-type");
    }
    assert!(values(&host, "orders").is_empty(), "nothing was stored");
}

#[test]
fn specs_and_state_are_read_as_windows_writes_them() {
    let host = with_uppercase(TestHost::start());
    let folder = tempfile::tempdir().expect("a folder");
    let spec = folder.path().join("spec.json");
    let said = "\u{feff}{\r\n\"output\":\"out\"}\r\n";
    std::fs::write(&spec, said).expect("written");
    let module = host.get("/v1/modules").json()["modules"][0]["digest"].clone();
    let spec = spec.to_str().expect("a name");
    let module = module.as_str().expect("a digest");
    let arguments = [
        "processor",
        "deploy",
        "shout",
        "--spec",
        spec,
        "--module",
        module,
        "--topic",
        "in",
    ];
    let done = millrace(&host, &arguments, b"");
    assert!(done.status.success(), "{done:?}");
    let place = ["processor", "state", "import", "shout", "--partition", "0"];
    let entries = "\u{feff}{\"key\":\"a\",\"value\":\"1\"}\r\n\r\n{\"key\":\"b\",\"value\":\"2\"}";
    let done = millrace(&host, &place, entries.as_bytes());
    assert!(done.status.success(), "{done:?}");
    let state = host.get("/v1/processors/shout/state?partition=0").json();
    assert_eq!(state["entries_total"], 2);
    let refused = millrace(&host, &place, &utf16(entries));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("UTF-16"), "{told}");
}

#[test]
fn a_message_a_line_is_that_under_every_name_and_any_other_type_is_refused() {
    let host = host();
    let lines = b"{\"value\":\"a\"}\n{\"value\":\"b\"}\n{\"value\":\"c\"}\n";
    for kind in [
        "application/x-ndjson",
        "Application/NDJSON; charset=\"UTF-8\"",
        "application/jsonl",
        "application/jsonlines",
        "application/json-lines",
    ] {
        let answer = send(&host, kind, lines);
        assert_eq!(answer.json()["count"], 3, "{kind}");
    }
    let before = values(&host, "orders").len();
    for kind in [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json-seq",
        "application/vnd.api+json",
        "text/csv",
        "image/png",
    ] {
        for body in [&lines[..], b"value=a", b""] {
            let told = send(&host, kind, body).refused(415, "unsupported-type");
            assert!(told.contains("application/x-ndjson"), "{told}");
        }
    }
    host.call("POST", MESSAGES, &[], "{\"value\":1}")
        .refused(415, "unsupported-type");
    for several in [
        &b"{\"value\":1} {\"value\":2}"[..],
        b"[{\"value\":1}]",
        lines,
    ] {
        let told = send(&host, "application/json", several).refused(400, "malformed");
        assert!(told.contains("application/x-ndjson"), "{told}");
    }
    send(&host, "application/json", b"{}").refused(400, "malformed");
    assert_eq!(values(&host, "orders").len(), before, "nothing was stored");
}

#[test]
fn a_compressed_body_is_inflated_within_the_bound_at_every_route() {
    let host = host();
    let coded = |path: &str, kind: &str, coding: &str, body: &[u8]| {
        let headers = [("content-type", kind), ("content-encoding", coding)];
        host.call("POST", path, &headers, body)
    };
    let pack = |codec: Compression, plain: &[u8]| {
        let mut out = Vec::new();
        codec.deflate(plain, &mut out).expect("deflated");
        out
    };
    for (name, codec) in [("gzip", Compression::Gzip), ("ZSTD", Compression::Zstd)] {
        let json = pack(codec, b"{\"value\":\"inflated\"}");
        assert_eq!(coded(MESSAGES, "application/json", name, &json).status, 200);
        let raw = pack(codec, &[b'r'; 200_000]);
        assert_eq!(coded(MESSAGES, "text/plain", name, &raw).status, 200);
        let found = values(&host, "orders");
        assert_eq!(found[found.len() - 2], "inflated");
        assert_eq!(found[found.len() - 1], "r".repeat(200_000));

        let topic = pack(codec, format!("{{\"name\":\"by-{codec}\"}}").as_bytes());
        assert_eq!(
            coded("/v1/topics", "application/json", name, &topic).status,
            201
        );
        let told = coded(
            "/v1/modules",
            "application/wasm",
            name,
            &pack(codec, b"no component"),
        );
        let told = told.json()["error"]["message"].to_string();
        assert!(
            !told.contains(name),
            "the plain bytes were looked at: {told}"
        );

        // Small while compressed, and more than any route accepts.
        let bomb = pack(codec, &vec![0; 65 << 20]);
        assert!(bomb.len() < 1 << 20);
        for path in [MESSAGES, "/v1/topics", "/v1/modules"] {
            let refused = coded(path, "text/plain", name, &bomb);
            refused.refused(413, "too-large");
        }
        coded(MESSAGES, "text/plain", name, b"plain").refused(400, "malformed");
        coded(MESSAGES, "text/plain", name, &raw[..raw.len() - 4]).refused(400, "malformed");
    }
    assert_eq!(
        coded(MESSAGES, "text/plain", "identity", b"plain").status,
        200
    );
    for unknown in ["br", "gzip, gzip", "aes128gcm"] {
        for path in [MESSAGES, "/v1/topics", "/v1/modules"] {
            let refused = coded(path, "text/plain", unknown, b"x");
            assert_eq!(
                refused.headers["accept-encoding"],
                "gzip, deflate, zstd, identity"
            );
            refused.refused(415, "unsupported-encoding");
        }
    }
    assert_eq!(values(&host, "orders").len(), 5, "nothing else was stored");
}

#[test]
fn what_a_fetch_shows_may_be_produced_and_is_the_same_message() {
    let host = host().with_topic("copy", 1);
    let bodies = [
        json!({"key_base64": "/w==", "value_base64": "AP8=", "header_list": [["b", "1"], ["a", {"base64": "/w=="}], ["b", null]]}),
        json!({"key": null, "value": null, "headers": {}, "timestamp": 7}),
        json!({"value": "{\"a\": 1}", "headers": {"z": "1", "a": ["2", "3"]}}),
        json!({"value": "", "header_list": [[{"base64": "/g=="}, "x"]]}),
    ];
    for body in &bodies {
        assert_eq!(
            host.post_json(MESSAGES, body.to_string()).status,
            200,
            "{body}"
        );
    }
    let lines = |topic: &str| {
        let lines = [("accept", "application/x-ndjson")];
        let path = format!("/v1/topics/{topic}/partitions/0/messages");
        host.call("GET", &path, &lines, "").bytes
    };
    let shown = lines("orders");
    let copied = host.call(
        "POST",
        "/v1/topics/copy/messages",
        &[("content-type", "application/x-ndjson")],
        shown.clone(),
    );
    assert_eq!(copied.json()["count"], bodies.len());
    assert_eq!(lines("copy"), shown);
    // The command line shows it in the same way.
    let consumed = millrace(&host, &["consume", "orders", "--json"], b"").stdout;
    assert_eq!(
        String::from_utf8_lossy(&consumed),
        String::from_utf8_lossy(&shown)
    );
    let done = millrace(
        &host,
        &["produce", "copy", "--ndjson", "--file", "-"],
        &consumed,
    );
    assert!(done.status.success(), "{done:?}");
    let copies = lines("copy");
    let field = |lines: &[u8]| {
        let messages = lines
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty());
        let mut messages: Vec<Value> = messages
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect();
        messages
            .iter_mut()
            .for_each(|message| message["offset"] = json!(null));
        messages
    };
    assert_eq!(field(&copies)[bodies.len()..], field(&shown)[..]);
}

#[test]
fn headers_keep_their_order_and_their_doubles_wherever_they_are_shown() {
    let host = host();
    let names = ["z", "b", "c", "z", "a2", "a"];
    let list = json!(names.map(|name| [name, "v"]));
    let arguments: Vec<String> = names
        .iter()
        .map(|name| format!("--header={name}=v"))
        .collect();
    let with_headers = |verb: &[&str], rest: &[&str]| {
        let headers = arguments.iter().map(String::as_str);
        let all: Vec<&str> = verb
            .iter()
            .copied()
            .chain(headers)
            .chain(rest.iter().copied())
            .collect();
        let done = millrace(&host, &all, b"");
        assert!(done.status.success(), "{done:?}");
    };
    with_headers(&["produce", "orders"], &["now"]);
    with_headers(&["produce", "orders", "--delay", "1h"], &["later"]);
    with_headers(
        &[
            "schedule",
            "create",
            "tick",
            "--topic",
            "orders",
            "--cron",
            "0 0 1 1 *",
        ],
        &["--value", "v"],
    );
    for (command, at) in [
        (&["consume", "orders"][..], ""),
        (&["delayed", "list", "orders"], "/delayed/0/message"),
        (&["schedule", "show", "tick"], ""),
    ] {
        let json = [command, &["--json"]].concat();
        let output = millrace(&host, &json, b"").stdout;
        let shown: Value = serde_json::from_slice(&output).expect("JSON");
        let message = shown.pointer(at).expect("a message");
        assert_eq!(message["header_list"], list, "{command:?}");
        let object = message["headers"].as_object().expect("headers");
        let order: Vec<&str> = object.keys().map(String::as_str).collect();
        assert_eq!(order, ["z", "b", "c", "a2", "a"], "{command:?}");
    }
}
