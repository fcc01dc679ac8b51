//! Uploads over HTTP whose compile takes longer than their client waits.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Answer, TestHost, config_in};

fn upload(host: &TestHost, query: &str, bytes: &[u8]) -> Answer {
    let wasm = [("content-type", "application/wasm")];
    let path = format!("/v1/modules?{query}");
    host.call("POST", &path, &wasm, bytes.to_vec())
}

/// The answer about a module that is admitted or refused at last.
fn at_last(host: &TestHost, path: &str) -> Answer {
    let start = Instant::now();
    loop {
        let answer = host.get(path);
        if answer.status != 202 {
            return answer;
        }
        let shown = answer.json();
        let state = shown["state"].as_str().expect("a state");
        assert!(
            ["waiting", "compiling", "trying"].contains(&state),
            "{shown}"
        );
        assert!(answer.headers.contains_key("retry-after"));
        assert!(start.elapsed() < Duration::from_secs(120), "{shown}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_upload_that_does_not_wait_is_compiled_behind_it_and_a_deployment_waits_for_it() {
    let host = TestHost::start().with_topic("in", 1).with_topic("out", 1);
    let query = "tag=upper@1.0.0&wait_ms=0";
    let accepted = upload(&host, query, guest_artifacts::UPPERCASE);
    assert_eq!(accepted.status, 202);
    let path = accepted.headers["location"]
        .to_str()
        .expect("a path")
        .to_owned();
    let spec = json!({"topics": ["in"], "module": "upper@1.0.0", "output": "out"});
    let deployed = host.call("PUT", "/v1/processors/shout", &[], spec.to_string());
    assert_eq!(deployed.status, 201, "{}", deployed.json());
    let module = at_last(&host, &path);
    assert_eq!(module.status, 200, "{}", module.json());
    assert_eq!(module.json()["tag"], "upper@1.0.0");
    assert!(module.json()["compile_ms"].as_u64() > Some(0));
    assert_eq!(host.get("/v1/modules").json()["under_way"], json!([]));
    // The same bytes again, with another tag, and nothing is compiled: what the compile took stays known.
    let again = upload(&host, "tag=upper@1.0.1", guest_artifacts::UPPERCASE);
    assert_eq!(again.status, 200);
    assert_eq!(again.json()["compile_ms"], module.json()["compile_ms"]);
}

#[test]
fn whoever_asks_about_a_refused_upload_is_told_why() {
    let host = TestHost::start().with_topic("in", 1);
    let refused = upload(&host, "tag=text@1.0.0&wait_ms=0", b"no component at all");
    assert!([202, 422].contains(&refused.status), "{}", refused.status);
    let text = at_last(&host, "/v1/modules/text@1.0.0").refused(422, "not-a-component");
    assert!(text.contains("was refused: this is text"), "{text}");
    let spec = json!({"topics": ["in"], "module": "text@1.0.0"});
    let deployed = host.call("PUT", "/v1/processors/p", &[], spec.to_string());
    deployed.refused(422, "not-a-component");
    host.get("/v1/modules/other@1.0.0")
        .refused(404, "unknown-module");
}

#[test]
fn a_host_that_stops_while_it_compiles_starts_as_if_nothing_was_uploaded() {
    let directory = tempfile::tempdir().expect("a directory");
    let host = TestHost::with(config_in(directory.path()));
    let accepted = upload(&host, "wait_ms=0", guest_artifacts::QUAKE_CLASSIFIER);
    assert_eq!(accepted.status, 202);
    let path = accepted.headers["location"]
        .to_str()
        .expect("a path")
        .to_owned();
    host.stop();
    let host = TestHost::with(config_in(directory.path()));
    // It may have been admitted in the last moment.
    assert!([200, 404].contains(&host.get(&path).status));
    let again = upload(&host, "", guest_artifacts::QUAKE_CLASSIFIER);
    assert!([200, 201].contains(&again.status), "{}", again.json());
}
