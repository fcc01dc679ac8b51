//! Damage in a running host: a reader that meets it gets an error, and processors wait until an
//! operator lets them continue.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{TestHost, config_in, program};

fn host(dir: &Path) -> TestHost {
    TestHost::with(config_in(dir))
}

/// Flips a bit in the only file under the directory that contains the text.
fn hurt(dir: &Path, text: &str) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            hurt(&path, text);
            continue;
        }
        let mut bytes = fs::read(&path).expect("a file");
        let at = bytes.windows(text.len()).position(|w| w == text.as_bytes());
        if let Some(at) = at {
            bytes[at] ^= 1;
            fs::write(path, bytes).expect("written");
        }
    }
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn millrace(host: &TestHost, arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(arguments).args(["--host", &host.url()]);
    command.output().expect("the binary runs")
}

/// `in` with three batches, the second of them damaged since.
fn damaged() -> (tempfile::TempDir, TestHost) {
    let dir = tempfile::tempdir().expect("a directory");
    let before = host(dir.path()).with_topic("in", 1).with_topic("out", 1);
    for value in ["the first", "the second", "the third"] {
        let body = json!({"value": value}).to_string();
        let produced = before.post_json("/v1/topics/in/messages", body);
        assert_eq!(produced.status, 200);
    }
    before.stop();
    hurt(&dir.path().join("topics"), "the second");
    let host = host(dir.path());
    (dir, host)
}

#[test]
fn a_reader_is_told_what_is_damaged_and_where_to_go_on() {
    let (_dir, host) = damaged();
    const FETCH: &str = "/v1/topics/in/partitions/0/messages";
    let first = host.get(FETCH).json();
    assert_eq!(first["messages"][0]["value"], "the first");
    assert_eq!(first["next"], 1);
    let refused = host.get(&format!("{FETCH}?from=1"));
    let told = refused.refused(500, "damaged");
    assert!(told.contains("from=2"), "{told}");
    assert_eq!(refused.json()["error"]["next"], 2);
    let after = host.get(&format!("{FETCH}?from=2")).json();
    assert_eq!(after["messages"][0]["value"], "the third");

    let listed = eventually(|| {
        let listed = host.get("/v1/damage").json();
        let exact = !listed["ranges"][0]["bytes"].is_null();
        exact.then_some(listed)
    });
    let range = &listed["ranges"][0];
    assert_eq!(
        (&range["topic"], &range["from"], &range["to"]),
        (&json!("in"), &json!(1), &json!(2))
    );
    let shown = host.get("/v1/topics/in").json();
    assert_eq!(shown["ends"][0]["damaged"], json!([{"from": 1, "to": 2}]));
    let metrics = String::from_utf8(host.get("/metrics").bytes).expect("text");
    assert!(metrics.contains("millrace_quarantined_ranges"), "{metrics}");

    let stopped = millrace(&host, &["consume", "in"]);
    assert_eq!(stopped.status.code(), Some(1), "{stopped:?}");
    let skipped = millrace(&host, &["consume", "in", "--skip-damaged"]);
    assert_eq!(skipped.status.code(), Some(0), "{skipped:?}");
    let text = String::from_utf8_lossy(&skipped.stdout).into_owned();
    assert!(
        text.contains("the first") && text.contains("the third"),
        "{text}"
    );
    let told = String::from_utf8_lossy(&skipped.stderr).into_owned();
    assert!(told.contains("continuing at 2"), "{told}");
}

#[test]
fn a_processor_waits_before_damage_until_its_loss_is_accepted() {
    let (_dir, host) = damaged();
    let wasm = [("content-type", "application/wasm")];
    let bytes = guest_artifacts::UPPERCASE.to_vec();
    host.call("POST", "/v1/modules?tag=upper@1.0.0", &wasm, bytes);
    let spec = r#"{"topics":["in"],"module":"upper@1.0.0","output":"out"}"#;
    let put = host.call("PUT", "/v1/processors/shout", &[], spec);
    assert_eq!(put.status, 201, "{}", put.json());
    let standing = || -> Value { host.get("/v1/processors/shout").json()["partitions"][0].clone() };
    let waiting = eventually(|| {
        let standing = standing();
        let state = standing["state"].as_str()?.to_owned();
        state.contains("damaged").then_some((state, standing))
    });
    assert!(waiting.0.starts_with("waiting: "), "{waiting:?}");
    assert!(waiting.0.contains("millrace damage accept"), "{waiting:?}");
    assert_eq!(waiting.1["next"], 1);

    let nothing = ["damage", "accept", "in", "0", "--from", "5", "--to", "9"];
    assert_eq!(millrace(&host, &nothing).status.code(), Some(3));
    let accept = ["damage", "accept", "in", "0", "--from", "1", "--to", "2"];
    let accepted = millrace(&host, &accept);
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    eventually(|| (standing()["next"] == 3).then_some(()));
    let out = host.get("/v1/topics/out/partitions/0/messages").json();
    assert_eq!(out["messages"][0]["value"], "THE FIRST");
    assert_eq!(out["messages"][1]["value"], "THE THIRD");
    assert_eq!(out["end"], 2);
    let listed = millrace(&host, &["damage", "list"]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(text.contains("accepted"), "{text}");
}
