//! How long messages are kept, over HTTP: settings, trim, and reading from a time on.

use crate::support::{Answer, TestHost};
use serde_json::json;

const TOPIC: &str = "/v1/topics/orders";
const TRIM: &str = "/v1/topics/orders/trim";
const MESSAGES: &str = "/v1/topics/orders/messages";
const FETCH: &str = "/v1/topics/orders/partitions/0/messages";

fn patch(host: &TestHost, body: &str) -> Answer {
    host.call(
        "PATCH",
        TOPIC,
        &[("content-type", "application/json")],
        body,
    )
}

#[test]
fn settings_are_given_at_the_start_shown_and_changed_one_by_one() {
    let host = TestHost::start();
    let made = host.post_json(
        "/v1/topics",
        r#"{"name":"orders","settings":{"retention_ms":5000,"segment_bytes":65536}}"#,
    );
    assert_eq!(made.status, 201);
    let expected = json!({
        "retention_ms": 5000, "retention_bytes": null, "compact": false, "tombstone_ms": 86_400_000,
        "segment_bytes": 65536, "segment_ms": null, "compression": "none",
    });
    assert_eq!(made.json()["settings"], expected);
    let differs = host.post_json("/v1/topics", r#"{"name":"orders"}"#);
    differs.refused(409, "topic-exists");

    let body = r#"{"durability":"os","settings":{"retention_ms":null,"retention_bytes":1000,"compact":true}}"#;
    let changed = patch(&host, body);
    assert_eq!(changed.status, 200);
    let changed = changed.json();
    assert_eq!(changed["durability"], "os");
    assert_eq!(changed["settings"]["retention_ms"], json!(null));
    assert_eq!(changed["settings"]["retention_bytes"], 1000);
    assert_eq!(changed["settings"]["segment_bytes"], 65536);
    assert_eq!(host.get(TOPIC).json()["settings"], changed["settings"]);

    // The setting applies at once: a compacted topic takes no message without a key.
    let refused = host.post_json(MESSAGES, r#"{"value":"v"}"#);
    assert!(
        refused
            .refused(422, "key-missing")
            .contains("turn compaction off")
    );
    assert_eq!(
        host.post_json(MESSAGES, r#"{"key":"k","value":"v"}"#)
            .status,
        200
    );
}

#[test]
fn settings_that_make_no_sense_are_refused_with_what_would() {
    let host = TestHost::start().with_topic("orders", 1);
    let before = host.get(TOPIC).json();
    let slip = patch(&host, r#"{"settings":{"retention_mss":1}}"#);
    assert!(
        slip.refused(400, "malformed")
            .contains("did you mean `retention_ms`?")
    );
    let elsewhere = patch(&host, r#"{"retention_ms":1}"#);
    assert!(elsewhere.refused(400, "malformed").contains("settings"));
    for settings in [
        r#"{"segment_bytes":1}"#,
        r#"{"segment_bytes":5000000000}"#,
        r#"{"retention_ms":0}"#,
        r#"{"segment_ms":0}"#,
    ] {
        let refused = patch(&host, &format!(r#"{{"settings":{settings}}}"#));
        assert!(
            refused.refused(422, "bad-setting").contains("must be"),
            "{settings}"
        );
        let new = format!(r#"{{"name":"fresh","settings":{settings}}}"#);
        host.post_json("/v1/topics", new)
            .refused(422, "bad-setting");
    }
    patch(&host, r#"{"settings":{"compact":null}}"#).refused(400, "malformed");
    assert_eq!(host.get(TOPIC).json(), before);
    let unknown = host.call("PATCH", "/v1/topics/nothing", &[], "{}");
    unknown.refused(404, "unknown-topic");
}

#[test]
fn a_trim_says_where_partitions_begin_and_refuses_what_is_not_there() {
    let host = TestHost::start().with_topic("orders", 2);
    for partition in [0, 0, 0, 1] {
        let body = format!(r#"{{"value":"v","partition":{partition}}}"#);
        assert_eq!(host.post_json(MESSAGES, body).status, 200);
    }
    let trimmed = host.post_json(TRIM, r#"{"before":2}"#);
    let starts = json!([{"partition": 0, "start": 2}, {"partition": 1, "start": 1}]);
    assert_eq!(trimmed.json()["starts"], starts);
    host.get(&format!("{FETCH}?from=1"))
        .refused(404, "offset-not-kept");
    assert_eq!(host.get(FETCH).json()["messages"][0]["offset"], 2);

    let beyond = host.post_json(TRIM, r#"{"before":9,"partition":0}"#);
    assert!(beyond.refused(422, "position-past-end").contains("end"));
    let one = host.post_json(TRIM, r#"{"before":"end","partition":0}"#);
    assert_eq!(one.json()["starts"], json!([{"partition": 0, "start": 3}]));
    host.post_json(TRIM, r#"{"before":1,"partition":7}"#)
        .refused(404, "unknown-partition");
    for wrong in [
        r#"{"before":"start"}"#,
        r#"{"before":-1}"#,
        "{}",
        r#"{"before":1,"x":1}"#,
    ] {
        host.post_json(TRIM, wrong).refused(400, "malformed");
    }
    host.post_json("/v1/topics/nothing/trim", r#"{"before":1}"#)
        .refused(404, "unknown-topic");
}

#[test]
fn reading_begins_at_the_first_message_of_a_moment_or_later() {
    let host = TestHost::start().with_topic("orders", 1);
    for time in [1000, 3000, 2000, 4000] {
        let body = format!(r#"{{"value":"v","timestamp":{time}}}"#);
        assert_eq!(host.post_json(MESSAGES, body).status, 200);
    }
    let first = |query: &str| {
        let answer = host.get(&format!("{FETCH}?{query}")).json();
        (
            answer["messages"][0]["offset"].as_u64(),
            answer["next"].as_u64(),
        )
    };
    assert_eq!(first("from=timestamp:0").0, Some(0));
    assert_eq!(first("from=timestamp:1500").0, Some(1));
    assert_eq!(first("from=timestamp:3001").0, Some(3));
    assert_eq!(first("from=timestamp:4001"), (None, Some(4)));
    assert_eq!(first("from_time=1970-01-01T00:00:02.5Z").0, Some(1));
    for wrong in [
        "from=timestamp:x",
        "from=yesterday",
        "from_time=1970",
        "from=1&from_time=1970-01-01T00:00:00Z",
    ] {
        host.get(&format!("{FETCH}?{wrong}"))
            .refused(400, "malformed");
    }
}
