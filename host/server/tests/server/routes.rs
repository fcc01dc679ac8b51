//! Routes: paths that components answer.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::{ask, out};
use crate::support::{Answer, TestHost, config_in};

pub(crate) fn upload(host: &TestHost, tag: &str, bytes: &[u8]) {
    let wasm = [("content-type", "application/wasm")];
    let path = format!("/v1/modules?tag={tag}");
    let answer = host.call("POST", &path, &wasm, bytes.to_vec());
    assert_eq!(answer.status, 201, "{}", answer.json());
}

fn with_web(host: TestHost) -> TestHost {
    upload(&host, "web@1.0.0", guest_artifacts::WEB);
    let set = set(
        &host,
        "/web",
        json!({"module": "web@1.0.0", "limits": {"call_ms_max": 10_000}}),
    );
    assert_eq!(set.status, 200, "{}", set.json());
    host
}

pub(crate) fn set(host: &TestHost, path: &str, spec: Value) -> Answer {
    host.call("PUT", &format!("/v1/routes{path}"), &[], spec.to_string())
}

pub(crate) fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.bytes).into_owned()
}

#[test]
fn a_component_answers_requests_to_its_route_and_no_others() {
    let host = with_web(TestHost::start());
    let answer = host.call(
        "POST",
        "/web/echo?a=b",
        &[("x-asked", "politely"), ("connection", "close")],
        vec![b'x'; 1_000_000],
    );
    let expected = format!(
        "Post {} /web/echo?a=b Some(\"politely\") 1000000 bytes, whole: true",
        host.address
    );
    assert_eq!((answer.status, text(&answer)), (200, expected));
    assert_eq!(answer.headers["x-web"], "yes");
    assert!(answer.headers.contains_key("x-request-id"));
    // Its own errors are its own, not in our shape.
    let missing = host.get("/web/nowhere");
    assert_eq!(
        (missing.status, text(&missing).as_str()),
        (404, "no such page")
    );
    for path in ["/webs/echo", "/we", "/"] {
        host.get(path).refused(404, "unknown-route");
    }
    assert_eq!(host.get("/v1/topics").status, 200);

    // The longest path that covers a request answers it.
    let answer = set(&host, "/web/deep", json!({"module": "web@1.0.0"}));
    assert_eq!(answer.json()["revision"], 1);
    assert_eq!(host.get("/web/deep/parts").bytes.len(), 409_600);
    let listed = host.get("/v1/routes").json();
    let paths: Vec<&Value> = listed["routes"]
        .as_array()
        .expect("routes")
        .iter()
        .map(|route| &route["path"])
        .collect();
    assert_eq!(paths, ["/web", "/web/deep"]);
}

#[test]
fn a_route_is_set_shown_and_deleted_and_its_module_stays_while_it_is_used() {
    let host = with_web(TestHost::start());
    let spec = json!({"module": "web@1.0.0", "limits": {"call_ms_max": 10_000}});
    assert_eq!(
        set(&host, "/web", spec).json()["revision"],
        1,
        "it is the same"
    );
    let spec = json!({"module": "web@1.0.0", "config": {"a": "b"}});
    let changed = host.call(
        "PUT",
        "/v1/routes/web",
        &[("millrace-by", "ops")],
        spec.to_string(),
    );
    let changed = changed.json();
    assert_eq!(
        (&changed["revision"], &changed["set_by"]),
        (&json!(2), &json!("ops"))
    );
    let said = host
        .call("DELETE", "/v1/modules/web@1.0.0", &[], "")
        .refused(409, "in-use");
    assert!(said.contains("route /web"), "{said}");
    assert_eq!(host.call("DELETE", "/v1/routes/web", &[], "").status, 204);
    host.get("/web/echo").refused(404, "unknown-route");
    host.get("/v1/routes/web").refused(404, "no-such-route");
    host.call("DELETE", "/v1/routes/web", &[], "")
        .refused(404, "no-such-route");
    assert_eq!(
        host.call("DELETE", "/v1/modules/web@1.0.0", &[], "").status,
        204
    );
}

/// Asks for a page whose answer is too large for a revision that allows few bytes.
fn ask_for_much(host: &TestHost) -> bool {
    let partly =
        host.raw(b"GET /tried/parts HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    partly.ends_with("0\r\n\r\n")
}

#[test]
fn a_canary_is_tried_promoted_and_rolled_back_and_the_host_withdraws_one_that_fails() {
    let host = TestHost::start();
    upload(&host, "web@1.0.0", guest_artifacts::WEB);
    let spec = |field: &str, value: u64| json!({"module": "web@1.0.0", "limits": {"call_ms_max": 10_000, field: value}});
    let canary = |percent: u32, spec: Value| {
        let path = format!("/v1/routes/tried?canary={percent}");
        host.call("PUT", &path, &[], spec.to_string())
    };
    let first = set(&host, "/tried", spec("answer_bytes_max", 2_000_000));
    assert_eq!(first.status, 200, "{}", first.json());
    canary(0, spec("answer_bytes_max", 1_000_000)).refused(422, "invalid-spec");
    let tried = canary(10, spec("answer_bytes_max", 1_000_000)).json();
    assert_eq!(
        (&tried["revision"], &tried["canary"]["revision"]),
        (&json!(1), &json!(2))
    );
    let act = |what: &str, body: Value| {
        let path = format!("/v1/routes/tried/{what}");
        host.call("POST", &path, &[], body.to_string())
    };
    let shared = act("canary", json!({"percent": 50})).json();
    assert_eq!(shared["canary"]["percent"], 50);
    let promoted = act("promote", json!({})).json();
    assert_eq!(
        (&promoted["revision"], &promoted["way_back"]),
        (&json!(2), &json!(1))
    );
    act("promote", json!({})).refused(409, "no-trial");
    act("canary", json!({"percent": 5})).refused(409, "no-trial");

    // This one fails where the current one does not.
    canary(50, spec("answer_bytes_max", 1_000));
    let mut asked = 0;
    while host.get("/v1/routes/tried").json()["canary"] != Value::Null {
        ask_for_much(&host);
        asked += 1;
        assert!(asked < 2_000, "it is never withdrawn");
    }
    assert!(ask_for_much(&host) && ask_for_much(&host));
    let metrics = text(&host.get("/metrics"));
    let counted = |start: &str, part: &str| {
        let mut lines = metrics.lines();
        lines.any(|line| line.starts_with(start) && line.contains(part))
    };
    assert!(
        counted("millrace_route_requests_total", "revision=\"3\""),
        "{metrics}"
    );
    assert!(
        counted("millrace_canaries_withdrawn_total", "route=\"/tried\""),
        "{metrics}"
    );
    let said = act("rollback", json!({})).refused(409, "rolled-back-already");
    assert!(said.contains("revision 3"), "{said}");
    act("rollback", json!({"revision": 9})).refused(404, "unknown-revision");
    act("rollback", json!({"expected_revision": 3})).refused(409, "other-revision");
    let back = act("rollback", json!({"revision": 1, "expected_revision": 2})).json();
    assert_eq!(back["revision"], 1);

    let shown = host.get("/v1/routes/tried").json();
    let numbers: Vec<&Value> = shown["revisions"]
        .as_array()
        .expect("revisions")
        .iter()
        .map(|r| &r["number"])
        .collect();
    assert_eq!(numbers, [1, 2, 3]);
    let done: Vec<&str> = shown["changes"]
        .as_array()
        .expect("changes")
        .iter()
        .filter_map(|c| c["what"].as_str())
        .collect();
    assert_eq!(
        done,
        [
            "deploy", "canary", "canary", "promote", "canary", "withdraw", "rollback"
        ]
    );
    // What is none of these, and a path that only ends like one.
    host.call("POST", "/v1/routes/tried", &[], "")
        .refused(404, "unknown-route");
    host.call("POST", "/v1/routes/tried/shadow", &[], "")
        .refused(404, "unknown-route");
    act("rollback/rollback", json!({})).refused(404, "no-such-route");
}

#[test]
fn what_cannot_be_a_route_is_refused_and_said_why() {
    let host = with_web(TestHost::start());
    for path in ["/v1/topics", "/metrics", "/a//b", "/a/"] {
        set(&host, path, json!({"module": "web@1.0.0"})).refused(400, "malformed");
    }
    set(&host, "/a", json!({"module": "nothing@1.0.0"})).refused(404, "unknown-module");
    upload(&host, "upper@1.0.0", guest_artifacts::UPPERCASE);
    let said = set(&host, "/a", json!({"module": "upper@1.0.0"})).refused(422, "wrong-interface");
    assert!(said.contains("wasi:http/incoming-handler"), "{said}");
    set(&host, "/a", json!({"modul": "web@1.0.0"})).refused(400, "malformed");
}

#[test]
fn a_host_line_that_is_no_text_is_the_callers_mistake() {
    let host = with_web(TestHost::start());
    let asked = "GET /web/echo HTTP/1.1\r\nhost: b\u{fc}cher.example\r\n\r\n";
    let answer = host.raw(asked.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("xn--"), "{answer}");
}

#[test]
fn limits_out_of_range_are_refused_and_nothing_is_stored() {
    let host = TestHost::start();
    upload(&host, "web@1.0.0", guest_artifacts::WEB);
    for limits in [
        json!({"call_ms_max": u64::MAX}),
        json!({"call_ms_max": 0}),
        json!({"memory_bytes_max": 1_u64 << 40}),
        json!({"answer_bytes_max": u64::MAX}),
    ] {
        let spec = json!({"module": "web@1.0.0", "limits": limits});
        set(&host, "/web", spec).refused(422, "invalid-spec");
    }
    host.get("/v1/routes/web").refused(404, "no-such-route");
}

#[test]
fn a_component_that_fails_harms_nobody_else() {
    let host = with_web(TestHost::start());
    let quick = json!({"module": "web@1.0.0", "limits": {"call_ms_max": 300}});
    assert_eq!(set(&host, "/quick", quick).status, 200);
    for page in ["trap", "silent", "refuses", "odd"] {
        host.get(&format!("/web/{page}"))
            .refused(502, "route-failed");
    }
    let began = Instant::now();
    host.get("/quick/endless").refused(504, "route-late");
    assert!(began.elapsed() < Duration::from_secs(20));
    // Part of an answer is not taken for the whole: the connection ends without the last chunk.
    let partly = host.raw(b"GET /web/trap-late HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(
        partly.starts_with("HTTP/1.1 200") && !partly.ends_with("0\r\n\r\n"),
        "{} bytes",
        partly.len()
    );
    let shown = host.get("/v1/routes/web").json();
    let lines = shown["lines"].to_string();
    assert!(lines.contains("as its path says"), "{lines}");
    assert_eq!(text(&host.get("/web/count")), "1");
    let metrics = text(&host.get("/metrics"));
    let failed = metrics.lines().any(|line| {
        line.starts_with("millrace_route_requests_total")
            && line.contains("outcome=\"failed\"")
            && line.contains("route=\"/web\"")
            && line.ends_with(" 4")
    });
    assert!(failed, "{metrics}");
}

#[test]
fn a_route_answers_again_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let host = with_web(TestHost::with(config_in(directory.path())));
    assert_eq!(text(&host.get("/web/count")), "1");
    host.stop();
    let host = TestHost::with(config_in(directory.path()));
    assert_eq!(text(&host.get("/web/count")), "1");
    assert_eq!(host.get("/v1/routes/web").json()["problem"], Value::Null);
}

#[test]
fn routes_are_managed_from_the_command_line() {
    let host = TestHost::start();
    upload(&host, "web@1.0.0", guest_artifacts::WEB);
    let said = out(&ask(
        &host,
        &[
            "route",
            "set",
            "/hooks/web",
            "--module",
            "web@1.0.0",
            "--config",
            "a=b",
            "--call-max",
            "5s",
        ],
    ));
    assert!(
        said.contains("/hooks/web") && said.contains("5000"),
        "{said}"
    );
    assert!(out(&ask(&host, &["route", "list"])).contains("/hooks/web"));
    assert_eq!(text(&host.get("/hooks/web/count")), "1");
    assert!(out(&ask(&host, &["route", "show", "/hooks/web"])).contains("\"a\""));
    let set = ["route", "set", "/hooks/web", "--module", "web@1.0.0"];
    let said = out(&ask(&host, &[&set[..], &["--canary", "10"]].concat()));
    assert!(said.contains("2 (10 %)"), "{said}");
    let said = out(&ask(
        &host,
        &["route", "canary", "/hooks/web", "--percent", "20"],
    ));
    assert!(said.contains("2 (20 %)"), "{said}");
    let said = out(&ask(&host, &["route", "abort", "/hooks/web"]));
    assert!(!said.contains("canary"), "{said}");
    out(&ask(&host, &[&set[..], &["--canary", "10"]].concat()));
    out(&ask(&host, &["route", "promote", "/hooks/web"]));
    let said = out(&ask(&host, &["route", "rollback", "/hooks/web"]));
    assert!(
        said.contains("way back") && said.contains("/hooks/web"),
        "{said}"
    );
    let said = out(&ask(&host, &["route", "show", "/hooks/web"]));
    let taken_back = said.lines().filter(|line| line.contains("taken back"));
    assert_eq!(taken_back.count(), 2, "{said}");
    let gone = out(&ask(&host, &["route", "delete", "/hooks/web"]));
    assert_eq!(gone, "route /hooks/web is deleted\n");
    assert_eq!(host.get("/hooks/web/count").status, 404);
}

/// A host with the component `courier` at `/c`, the topics `in` and `other` of two partitions, and a processor that counts.
fn with_courier(grants: Value) -> TestHost {
    let host = TestHost::start()
        .with_topic("in", 2)
        .with_topic("out", 2)
        .with_topic("other", 2);
    upload(&host, "courier@1.0.0", guest_artifacts::COURIER);
    upload(&host, "counter@1.0.0", guest_artifacts::COUNTER);
    let spec = json!({"topics": ["in"], "module": "counter@1.0.0", "output": "out"});
    let deployed = host.call("PUT", "/v1/processors/counts", &[], spec.to_string());
    assert!(deployed.status < 300, "{}", deployed.json());
    let mut spec = json!({"module": "courier@1.0.0", "limits": {"call_ms_max": 60_000}});
    spec["grants"] = grants;
    let set = set(&host, "/c", spec);
    assert_eq!(set.status, 200, "{}", set.json());
    host
}

fn asked(host: &TestHost, words: &str) -> String {
    let answer = host.get(&format!("/c?{words}"));
    assert_eq!(answer.status, 200, "{words}: {}", text(&answer));
    text(&answer)
}

pub(crate) fn ends(host: &TestHost, topic: &str) -> u64 {
    let topic = host.get(&format!("/v1/topics/{topic}")).json();
    let ends = topic["ends"].as_array().expect("ends").iter();
    ends.filter_map(|end| end["end"].as_u64()).sum()
}

#[test]
fn what_a_component_sends_is_stored_and_processed_before_it_answers() {
    let host = with_courier(json!({"topics": ["in"], "views": ["counts"]}));
    assert_eq!(asked(&host, "get,counts,ada"), "no value");
    for count in 1..=3 {
        assert_eq!(asked(&host, "pass,counts,in,ada,x"), "passed true");
        assert_eq!(
            asked(&host, "get,counts,ada"),
            format!("value {count}"),
            "what it waited for is in the state"
        );
    }
    assert_eq!(ends(&host, "in"), 3);
    assert_eq!(asked(&host, "count,counts"), "2 partitions");
    for key in ["b-1", "b-2", "b-3", "b-4", "b-5", "b-6"] {
        let words = format!("pass,counts,in,{key},x");
        assert_eq!(asked(&host, &words), "passed true");
    }
    // At most two entries of six, in one partition or the other.
    let scans = [0, 1].map(|partition| asked(&host, &format!("scan,counts,{partition},b-")));
    assert!(
        scans.iter().any(|scan| scan.ends_with("more true")),
        "{scans:?}"
    );
    assert!(scans.iter().all(|scan| !scan.contains("ada")), "{scans:?}");
    assert_eq!(asked(&host, "wait,counts,in,50"), "passed false");
}

#[test]
fn a_send_with_a_key_takes_effect_once_and_the_key_is_the_routes_own() {
    let host = with_courier(json!({"topics": ["in"], "views": ["counts"]}));
    let first = asked(&host, "once,m-1,in,ada,hello");
    assert!(first.ends_with("repeated false"), "{first}");
    let again = asked(&host, "once,m-1,in,ada,hello");
    assert_eq!(again, first.replace("repeated false", "repeated true"));
    assert_eq!(ends(&host, "in"), 1);
    let other = asked(&host, "once,m-1,in,ada,bye");
    assert!(other.starts_with("key reused: "), "{other}");
    // Neither another route nor a producer shares it.
    let grants = json!({"topics": ["in"], "views": ["counts"]});
    let spec = json!({"module": "courier@1.0.0", "grants": grants});
    assert_eq!(set(&host, "/d", spec).status, 200);
    let elsewhere = text(&host.get("/d?once,m-1,in,ada,hello"));
    assert!(elsewhere.ends_with("repeated false"), "{elsewhere}");
    assert_eq!(ends(&host, "in"), 2);
}

#[test]
fn a_component_sends_and_reads_only_what_its_route_is_granted() {
    let host = with_courier(json!({"topics": ["in"], "views": ["counts"]}));
    let denied = asked(&host, "send,other,ada,x");
    assert!(
        denied.starts_with("not granted: ") && denied.contains("--grant-topic other"),
        "{denied}"
    );
    assert_eq!(ends(&host, "other"), 0);
    let denied = asked(&host, "get,others,ada");
    assert!(
        denied.starts_with("not granted: ") && denied.contains("--grant-view others"),
        "{denied}"
    );
    for refused in ["send,a b,ada,x", "wait,others,in,5", "scan,counts,7,b"] {
        let said = asked(&host, &refused.replace(' ', "%20"));
        assert!(said.starts_with("refused: "), "{refused}: {said}");
    }
    // Without grants it is no route at all, and the command that grants them is named.
    let said = set(&host, "/e", json!({"module": "courier@1.0.0"})).refused(422, "not-granted");
    assert!(
        said.contains("millrace:broker/producer") && said.contains("millrace:broker/views"),
        "{said}"
    );
    let grants = ["--grant-topic", "in", "--grant-view", "counts"];
    let command = ["route", "set", "/e", "--module", "courier@1.0.0"];
    let said = out(&ask(&host, &[&command[..], &grants].concat()));
    assert!(said.contains("/e") && said.contains("counts"), "{said}");
    assert_eq!(text(&host.get("/e?count,counts")), "2 partitions");
}

#[test]
fn what_was_sent_stays_though_the_component_fails_later_and_delayed_messages_wait() {
    let host = with_courier(json!({"topics": ["in"], "views": ["counts"]}));
    host.get("/c?fail,in,kept").refused(502, "route-failed");
    assert_eq!(ends(&host, "in"), 1);
    let tomorrow = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis()
        + 86_400_000;
    let later = asked(&host, &format!("later,in,x,{tomorrow}"));
    assert!(later.contains("/later repeated false"), "{later}");
    assert_eq!(ends(&host, "in"), 1);
}

#[test]
fn a_component_that_is_also_a_processor_sends_only_as_a_route() {
    let host = with_courier(json!({"topics": ["in"], "views": ["counts"]}));
    let spec = json!({"topics": ["other"], "module": "courier@1.0.0"});
    let deployed = host.call("PUT", "/v1/processors/both", &[], spec.to_string());
    assert!(deployed.status < 300, "{}", deployed.json());
    let sent = host.post_json("/v1/topics/other/messages?wait=both", r#"{"value": "x"}"#);
    assert!(sent.status < 300, "{}", sent.json());
    let letters = host.get("/v1/processors/both/dead-letters").json();
    let letters = letters.to_string();
    assert!(
        letters.contains("only the component of a route sends"),
        "{letters}"
    );
    assert_eq!(ends(&host, "out"), 0);
}
