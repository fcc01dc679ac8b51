//! Parked messages over HTTP and on the command line: listed with the time and the reason, tried
//! now, given up.

use millrace_tests::wait_for;
use serde_json::{Value, json};

use crate::support::{TestHost, program};

const PARKED: &str = "/v1/processors/p/parked";

/// A host with three parked messages: keys `a` and a byte that is no text, for an hour each, and one behind `a`.
fn with_three() -> TestHost {
    let host = TestHost::start().with_topic("in", 1).with_topic("out", 1);
    let bytes = guest_artifacts::FLAKY.to_vec();
    let module = host.call("POST", "/v1/modules", &[], bytes).json();
    let hour = 3_600_000;
    // With full jitter a wait is almost never short.
    let retry =
        json!({"attempts_max": 9, "delay_first_ms": 240 * hour, "delay_max_ms": 240 * hour});
    let spec =
        json!({"topics": ["in"], "module": module["digest"], "output": "out", "retry": retry});
    let deployed = host.call("PUT", "/v1/processors/p", &[], spec.to_string());
    assert_eq!(deployed.status, 201, "{}", deployed.json());
    let fails = json!({"fail-times": "1"});
    let messages = json!({"messages": [
        {"key": "a", "value": "1", "headers": fails},
        {"key": "a", "value": "2"},
        {"key_base64": "/w==", "value": "3", "headers": fails},
    ]});
    host.post_json("/v1/topics/in/messages", messages.to_string());
    let all = wait_for("three parked messages", || {
        Ok((host.get(PARKED).json()["total"] == 3).then_some(()))
    });
    all.expect("three parked messages");
    host
}

fn out(host: &TestHost, count: usize) {
    let path = "/v1/topics/out/partitions/0/messages?from=0";
    let read = wait_for("outputs", || {
        let messages = host.get(path).json()["messages"].clone();
        Ok((messages.as_array().map(Vec::len) == Some(count)).then_some(()))
    });
    read.expect("outputs");
}

fn run(host: &TestHost, arguments: &[&str]) -> (Option<i32>, String) {
    let output = program()
        .args(arguments)
        .env("MILLRACE_HOST", host.url())
        .output()
        .expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn parked_messages_are_listed_by_pages_with_until_when_and_why() {
    let host = with_three();
    let first = host.get(&format!("{PARKED}?max=2")).json();
    assert_eq!(
        (&first["total"], &first["next"]),
        (&json!(3), &json!("in/0/2"))
    );
    let [a, behind] = [0, 1].map(|at| first["parked"][at].clone());
    assert_eq!((&a["key"], &a["attempts"]), (&json!("a"), &json!(1)));
    assert_eq!(
        (&a["class"], &a["reason"]),
        (&json!("flaky"), &json!("fails 1 times"))
    );
    assert!(a["due"].is_u64() && a["first_failed_at"].is_u64(), "{a}");
    assert_eq!(
        (&behind["behind"], &behind["due"]),
        (&json!(0), &Value::Null)
    );
    let rest = host.get(&format!("{PARKED}?from=in/0/2")).json();
    assert_eq!(rest["parked"][0]["key_base64"], "/w==");
    assert_eq!(
        host.get(&format!("{PARKED}?class=other")).json()["total"],
        0
    );
    host.get("/v1/processors/q/parked")
        .refused(404, "unknown-processor");
    host.get(&format!("{PARKED}?from=nowhere"))
        .refused(400, "malformed");
    let status = host.get("/v1/processors/p").json()["partitions"][0].clone();
    assert!(status["waiting_until"].is_u64(), "{status}");
}

#[test]
fn one_is_tried_now_and_another_given_up() {
    let host = with_three();
    let now = format!("{PARKED}/try-now");
    host.post_json(&now, "{}").refused(400, "malformed");
    host.post_json(&now, r#"{"all":true,"class":"x"}"#)
        .refused(400, "malformed");
    let one = r#"{"messages":[{"topic":"in","partition":0,"offset":0}]}"#;
    assert_eq!(
        host.post_json(&now, one).json(),
        json!({"done": 1, "left": []})
    );
    out(&host, 2);
    let up = format!("{PARKED}/give-up");
    assert_eq!(
        host.post_json(&up, r#"{"class":"flaky"}"#).json()["done"],
        1
    );
    let letters = host
        .get("/v1/processors/p/dead-letters?cause=given-up")
        .json();
    assert_eq!(letters["dead_letters"][0]["cause"], "given-up");
    let gone = host.post_json(&up, one).json();
    assert_eq!(gone["left"][0]["message"], "in/0/0", "{gone}");
}

#[test]
fn the_command_line_lists_tries_and_gives_up() {
    let host = with_three();
    let (code, text) = run(&host, &["processor", "parked", "p"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("in/0/1") && text.contains("behind offset 0"),
        "{text}"
    );
    let (code, text) = run(&host, &["processor", "try-now", "p", "in/0/1"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("it waits behind offset 0"), "{text}");
    let (code, text) = run(&host, &["processor", "try-now", "p", "in/0/0"]);
    assert_eq!(code, Some(0), "{text}");
    out(&host, 2);
    let (code, text) = run(&host, &["processor", "give-up", "p", "--all"]);
    assert_eq!(
        (code, text.starts_with("1 given up")),
        (Some(0), true),
        "{text}"
    );
    let (code, text) = run(&host, &["dlq", "list", "p", "--cause", "given-up"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("given-up"), "{text}");
}
