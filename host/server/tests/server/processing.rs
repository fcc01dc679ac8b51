//! The whole path over HTTP: a module is uploaded and deployed, a message produced, processed and
//! read.

use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use crate::support::{Answer, TestHost, config_in};
use serde_json::{Value, json};

/// Durability `os`, in a directory.
fn on_disk() -> (tempfile::TempDir, TestHost) {
    let directory = tempfile::tempdir().expect("a directory");
    let host = TestHost::with(config_in(directory.path()));
    (directory, host)
}

const SPEC: &str = r#"{"topics":["in"],"module":"upper@1.0.0","output":"out"}"#;

pub(crate) fn with_uppercase(host: TestHost) -> TestHost {
    let host = host.with_topic("in", 1).with_topic("out", 1);
    let wasm = [("content-type", "application/wasm")];
    let upload = || {
        let bytes = guest_artifacts::UPPERCASE.to_vec();
        host.call("POST", "/v1/modules?tag=upper@1.0.0", &wasm, bytes)
    };
    let first = upload();
    assert_eq!(first.status, 201, "{}", first.json());
    assert_eq!(first.json()["exports"], json!(["message-processor"]));
    assert_eq!(upload().status, 200);
    let put = || host.call("PUT", "/v1/processors/shout", &[], SPEC);
    let first = put();
    assert_eq!(first.status, 201, "{}", first.json());
    assert_eq!(put().json()["current"], 1);
    host
}

/// Produces a value and gives what the processor made of it.
fn round(host: &TestHost, value: &str, at: u64) -> Value {
    let body = json!({"value": value}).to_string();
    assert_eq!(host.post_json("/v1/topics/in/messages", body).status, 200);
    let path = format!("/v1/topics/out/partitions/0/messages?from={at}&wait_ms=20000");
    host.get(&path).json()["messages"][0].clone()
}

#[test]
fn a_message_is_processed_by_an_uploaded_component() {
    let host = with_uppercase(TestHost::start());
    assert_eq!(round(&host, "quiet", 0)["value"], "QUIET");

    let module = host.get("/v1/modules/upper@1.0.0").json();
    let digest = module["digest"].as_str().expect("a digest");
    assert_eq!(
        host.get(&format!("/v1/modules/{}", &digest[..12])).json()["tag"],
        "upper@1.0.0"
    );
    host.call("DELETE", "/v1/modules/upper@1.0.0", &[], "")
        .refused(409, "in-use");
    host.call("DELETE", "/v1/topics/in", &[], "")
        .refused(409, "in-use");
    host.post_json("/v1/processors/shout/rollback", "")
        .refused(409, "nothing-to-roll-back");

    assert_eq!(
        host.post_json("/v1/processors/shout/pause", "").json()["paused"],
        true
    );
    assert_eq!(
        host.post_json("/v1/processors/shout/resume", "").json()["paused"],
        false
    );
    let shown = host.get("/v1/processors/shout").json();
    assert_eq!(
        (&shown["name"], &shown["partitions"][0]["topic"]),
        (&json!("shout"), &json!("in"))
    );
    assert_eq!(
        host.get("/v1/processors").json()["processors"][0]["current"],
        1
    );
    assert_eq!(
        host.get("/v1/processors/shout/logs").json(),
        json!({"lines": []})
    );
    assert_eq!(
        host.get("/v1/processors/shout/dead-letters").json(),
        json!({"dead_letters": [], "next": null})
    );
    assert_eq!(
        host.call("DELETE", "/v1/processors/shout", &[], "").status,
        204
    );
    assert_eq!(
        host.call("DELETE", "/v1/modules/upper@1.0.0", &[], "")
            .status,
        204
    );
}

#[test]
fn a_component_of_wasi_messaging_is_a_processor_whose_messages_are_committed_with_their_cause() {
    let host = TestHost::start().with_topic("in", 1).with_topic("out", 1);
    let host = host.with_topic("alerts", 1);
    let bytes = guest_artifacts::MESSENGER.to_vec();
    let module = host.call("POST", "/v1/modules", &[], bytes).json();
    assert_eq!(module["exports"], json!(["message-processor"]));
    let spec = json!({
        "topics": ["in"], "module": module["digest"], "output": "out", "retry": {"attempts_max": 1},
        "grants": {"topics": ["alerts"]},
    });
    let deployed = host.call("PUT", "/v1/processors/m", &[], spec.to_string());
    assert_eq!(deployed.status, 201, "{}", deployed.json());
    let values = [
        "send - to the output",
        "send alerts to another topic",
        "send-and-fail alerts never",
        "nothing",
    ];
    let messages = values.map(|value| json!({"key": "k", "value": value}));
    let path = "/v1/topics/in/messages?wait=m&wait_ms=30000";
    let sent = host.post_json(path, json!({"messages": messages}).to_string());
    assert_eq!(sent.json()["passed"], true, "{}", sent.json());
    for (topic, value) in [("out", "to the output"), ("alerts", "to another topic")] {
        let path = format!("/v1/topics/{topic}/partitions/0/messages?from=0");
        let read = host.get(&path).json();
        assert_eq!(read["messages"].as_array().map(Vec::len), Some(1), "{read}");
        assert_eq!(read["messages"][0]["value"], value);
        assert_eq!(read["messages"][0]["key"], "k");
    }
    let letters = host.get("/v1/processors/m/dead-letters").json();
    let letter = &letters["dead_letters"][0];
    assert_eq!(letter["message"]["value"], values[2]);
    assert_eq!(
        (&letter["cause"], &letter["class"]),
        (&json!("retry"), &json!("other"))
    );
    assert_eq!(letter["reason"], "after it was sent");
}

#[test]
fn a_dead_letter_is_listed_shown_and_sent_again_once() {
    let host = TestHost::start().with_topic("in", 1).with_topic("out", 1);
    let bytes = guest_artifacts::POISON.to_vec();
    let module = host.call("POST", "/v1/modules", &[], bytes).json();
    let spec = json!({
        "topics": ["in"], "module": module["digest"], "output": "out", "retry": {"attempts_max": 1},
    });
    assert_eq!(
        host.call("PUT", "/v1/processors/p", &[], spec.to_string())
            .status,
        201
    );
    host.post_json("/v1/topics/in/messages", r#"{"key":"k","value":"poison"}"#);
    let letters = eventually(|| {
        let letters = host.get("/v1/processors/p/dead-letters").json();
        letters["dead_letters"].get(0).is_some().then_some(letters)
    });
    let letter = &letters["dead_letters"][0];
    assert_eq!(
        (&letter["cause"], &letter["message"]["value"]),
        (&json!("trap"), &json!("poison"))
    );
    let path = format!(
        "/v1/processors/p/dead-letters/in.p.dlq/0/{}",
        letter["offset"]
    );
    assert_eq!(host.get(&path).json()["origin_offset"], 0);
    host.get("/v1/processors/p/dead-letters/in.p.dlq/0/99")
        .refused(404, "unknown-dead-letter");

    let place = json!({"dead_letters": [{"topic": "in.p.dlq", "partition": 0, "offset": letter["offset"]}]});
    let redrive = || {
        host.post_json("/v1/processors/p/dead-letters/redrive", place.to_string())
            .json()
    };
    for (sent, already) in [(1, 0), (0, 1)] {
        let done = redrive();
        assert_eq!(
            (&done["sent"], &done["already"]),
            (&json!(sent), &json!(already))
        );
    }
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it did not come about"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Measures rather than judges: the machine may be busy. Run with `--nocapture` to see the figures.
#[test]
fn a_message_goes_the_whole_way_without_a_pause() {
    let (_directory, host) = on_disk();
    let host = with_uppercase(host);
    let mut times: Vec<Duration> = (0..300u64)
        .map(|at| {
            let begun = Instant::now();
            assert_eq!(round(&host, "quiet", at)["value"], "QUIET");
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "produce, process, read: p50 {:?}, p99 {:?}",
        times[150], times[297]
    );
    // A poll or a timer anywhere on the path would show as tens of milliseconds.
    assert!(times[150] < Duration::from_millis(20), "{:?}", times[150]);
}

#[test]
fn more_uploads_at_once_than_fit_are_asked_to_come_again() {
    let host = TestHost::start();
    let upload = |ending: Vec<u8>| {
        let bytes = [guest_artifacts::UPPERCASE.to_vec(), ending].concat();
        host.call("POST", "/v1/modules", &[], bytes)
    };
    let at_once = |ending_of: fn(u8) -> Vec<u8>| -> Vec<Answer> {
        std::thread::scope(|scope| {
            let uploads = (0..60).map(|n| scope.spawn(move || upload(ending_of(n))));
            let uploads: Vec<_> = uploads.collect();
            let answer = |upload: ScopedJoinHandle<'_, _>| upload.join().expect("sent");
            uploads.into_iter().map(answer).collect()
        })
    };
    // The same bytes are compiled once, however many send them.
    let same = at_once(|_| Vec::new());
    assert!(same.iter().all(|answer| answer.status < 300));
    // A section without a meaning makes each of them another module.
    let others = at_once(|n| vec![0, 3, 2, b'a' + n / 26, b'a' + n % 26]);
    let (taken, busy): (Vec<_>, Vec<_>) = others.iter().partition(|answer| answer.status < 300);
    assert!(!taken.is_empty() && !busy.is_empty(), "{}", taken.len());
    for answer in busy {
        answer.refused(503, "busy");
        assert!(answer.headers.contains_key("retry-after"));
    }
}

#[test]
fn a_producer_can_wait_until_a_processor_has_settled_its_messages() {
    let host = with_uppercase(TestHost::start());
    let send = |query: &str| {
        let body = json!({"messages": [{"value": "a"}, {"value": "b"}]}).to_string();
        host.post_json(&format!("/v1/topics/in/messages{query}"), body)
    };
    let answer = send("?wait=shout&wait_ms=30000").json();
    assert_eq!(
        (&answer["passed"], &answer["count"]),
        (&json!(true), &json!(2))
    );
    // What it wrote is there, without waiting.
    let read = host
        .get("/v1/topics/out/partitions/0/messages?from=0")
        .json();
    assert_eq!(read["messages"][1]["value"], "B");
    assert_eq!(send("").json()["passed"], Value::Null);

    let paused = host.call("POST", "/v1/processors/shout/pause", &[], "{}");
    assert_eq!(paused.status, 200);
    let answer = send("?wait=shout&wait_ms=50");
    assert_eq!(
        (answer.status, &answer.json()["passed"]),
        (200, &json!(false))
    );

    send("?wait=nobody").refused(404, "unknown-processor");
    send("?wait_ms=50").refused(400, "malformed");
    let body = json!({"value": "a"}).to_string();
    host.post_json("/v1/topics/out/messages?wait=shout", body)
        .refused(409, "not-an-input");
    let delayed = json!({"value": "a", "delay_ms": 1000}).to_string();
    host.post_json("/v1/topics/in/messages?wait=shout", delayed)
        .refused(400, "malformed");
    // None of the refused ones was stored.
    let topic = host.get("/v1/topics/in").json();
    assert_eq!(topic["ends"][0]["end"], 6, "{topic}");
}

#[test]
fn a_wait_that_is_too_long_is_refused_and_nothing_is_stored() {
    let host = TestHost::start().with_topic("orders", 1);
    let path = "/v1/topics/orders/messages?wait=billing&wait_ms=30001";
    let said = host
        .post_json(path, r#"{"value": "1"}"#)
        .refused(400, "malformed");
    assert!(
        said.contains("wait_ms is 30001; the maximum is 30000"),
        "{said}"
    );
    assert_eq!(host.get("/v1/topics/orders").json()["ends"][0]["end"], 0);
}
