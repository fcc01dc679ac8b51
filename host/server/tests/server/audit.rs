//! The audit log: what is in it, who reads it, and that nobody else writes it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::access::Guarded;

impl Guarded {
    /// Records, newest first, once there is one that fits.
    fn audited(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.get(&self.admin, "/v1/access/audit?max=1000").json();
            let records = answer["records"].as_array().expect("records");
            if let Some(found) = records.iter().find(|record| fits(record)) {
                return found.clone();
            }
            assert!(Instant::now() < until, "no such record: {answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_change_is_in_the_log_when_it_is_answered() {
    let guarded = Guarded::start();
    let builder = guarded.principal("builder", &["developer"]);
    let line = format!("Bearer {builder}");
    let headers = [
        ("authorization", line.as_str()),
        ("content-type", "application/json"),
        ("x-request-id", "change-4711"),
    ];
    let made = guarded.host.call(
        "POST",
        "/v1/topics",
        &headers,
        json!({"name": "orders", "partitions": 1}).to_string(),
    );
    assert_eq!(made.status, 201);
    let answer = guarded.get(&guarded.admin, "/v1/access/audit").json();
    let newest = &answer["records"][0];
    for (field, value) in [
        ("principal", json!("builder")),
        ("verb", json!("create-topic")),
        ("on", json!("topic:orders")),
        ("result", json!("done")),
        ("request", json!("change-4711")),
        ("from", json!("127.0.0.1")),
        ("code", Value::Null),
        ("count", json!(1)),
    ] {
        assert_eq!(newest[field], value, "{field}: {newest}");
    }
    let again = guarded.host.call(
        "POST",
        "/v1/topics",
        &headers,
        json!({"name": "orders", "partitions": 2}).to_string(),
    );
    assert_eq!(again.status, 409);
    let answer = guarded.get(&guarded.admin, "/v1/access/audit").json();
    let newest = &answer["records"][0];
    assert_eq!(
        (&newest["result"], &newest["code"]),
        (&json!("failed"), &json!("topic-exists")),
        "{newest}"
    );
}

#[test]
fn refusals_are_in_the_log_with_their_number_and_messages_are_not() {
    let guarded = Guarded::start().with_topic("orders");
    let shop = guarded.principal("shop", &["producer on topic:orders"]);
    for _ in 0..5 {
        assert_eq!(guarded.produce(&shop, "orders").status, 200);
        guarded
            .produce(&shop, "salaries")
            .refused(403, "not-allowed");
    }
    let mut count = 0;
    let until = Instant::now() + Duration::from_secs(60);
    while count < 5 {
        assert!(Instant::now() < until, "{count} refusals are in the log");
        let answer = guarded.get(
            &guarded.admin,
            "/v1/access/audit?refused=true&principal=shop",
        );
        let answer = answer.json();
        let records = answer["records"].as_array().expect("records").iter();
        count = records
            .map(|record| {
                assert_eq!(record["verb"], "produce", "{record}");
                assert_eq!(record["on"], "topic:salaries", "{record}");
                assert_eq!(record["code"], "not-allowed", "{record}");
                record["count"].as_u64().expect("a number")
            })
            .sum();
    }
    assert_eq!(count, 5);
    let all = guarded
        .get(&guarded.admin, "/v1/access/audit?principal=shop")
        .json();
    let done = all["records"].as_array().expect("records").iter();
    assert_eq!(done.filter(|record| record["result"] == "done").count(), 0);
}

#[test]
fn credentials_that_are_refused_are_in_the_log_without_their_text() {
    let guarded = Guarded::start();
    let wrong = "mr_aaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    guarded
        .get(wrong, "/v1/topics")
        .refused(401, "credentials-refused");
    guarded
        .host
        .get("/v1/topics")
        .refused(401, "credentials-missing");
    let refused = guarded.audited(|record| record["code"] == "credentials-refused");
    assert_eq!(refused["verb"], "authenticate", "{refused}");
    assert!(!refused.to_string().contains("AAAA"), "{refused}");
    let missing = guarded.audited(|record| record["code"] == "credentials-missing");
    assert_eq!(missing["principal"], Value::Null, "{missing}");
    assert_eq!(missing["verb"], "see-topic", "{missing}");
}

#[test]
fn the_log_is_read_with_a_right_of_its_own_and_written_by_nobody() {
    let guarded = Guarded::start().with_topic("orders");
    let auditor = guarded.principal("auditor", &["auditor"]);
    let builder = guarded.principal("builder", &["developer"]);
    let path = "/v1/topics/host.audit/partitions/0/messages";
    assert_eq!(guarded.get(&auditor, path).status, 200);
    assert_eq!(guarded.get(&auditor, "/v1/access/audit").status, 200);
    guarded.get(&builder, path).refused(403, "not-allowed");
    guarded
        .get(&builder, "/v1/access/audit")
        .refused(403, "not-allowed");
    let topics = guarded.get(&builder, "/v1/topics").json().to_string();
    assert!(!topics.contains("host.audit"), "{topics}");
    for token in [&guarded.admin, &auditor] {
        guarded
            .produce(token, "host.audit")
            .refused(403, "not-allowed");
        guarded
            .call(token, "DELETE", "/v1/topics/host.audit", &Value::Null)
            .refused(403, "not-allowed");
        guarded
            .call(
                token,
                "POST",
                "/v1/topics/host.audit/trim",
                &json!({"before": {"0": 1}}),
            )
            .refused(403, "not-allowed");
    }
    let kept = guarded.call(
        &guarded.admin,
        "PATCH",
        "/v1/topics/host.audit",
        &json!({"settings": {"retention_ms": 100_000_000}}),
    );
    assert_eq!(kept.status, 200, "{}", kept.json());
}

#[test]
fn of_the_log_only_how_long_it_is_kept_can_be_changed() {
    let guarded = Guarded::start();
    guarded.principal("shop", &["viewer"]);
    for change in [
        json!({"settings": {"compact": true}}),
        json!({"settings": {"retention_ms": 1000}}),
        json!({"settings": {"retention_bytes": 1}}),
        json!({"partitions": 2, "accept_moved_keys": true}),
    ] {
        let path = "/v1/topics/host.audit";
        let refused = guarded.call(&guarded.admin, "PATCH", path, &change);
        let said = refused.refused(403, "not-allowed");
        assert!(said.contains("how long it is kept"), "{said}");
    }
}

#[test]
fn what_stands_in_the_place_of_a_name_is_cut_in_the_log() {
    let guarded = Guarded::start();
    let path = format!("/v1/topics/{}/messages", "%00".repeat(4_000));
    guarded.host.get(&path).refused(401, "credentials-missing");
    let record = guarded.audited(|record| record["code"] == "credentials-missing");
    let on = record["on"].as_str().expect("a name");
    assert!(on.len() < 300, "{}", on.len());
}

#[test]
fn the_log_is_read_backwards_in_pages() {
    let guarded = Guarded::start();
    for at in 0..12 {
        guarded.principal(&format!("p-{at}"), &["viewer"]);
    }
    let mut seen = Vec::new();
    let mut path = "/v1/access/audit?max=5".to_owned();
    loop {
        let page = guarded.get(&guarded.admin, &path).json();
        let records = page["records"].as_array().expect("records").clone();
        assert!(records.len() <= 5);
        seen.extend(records);
        let Some(next) = page["next"].as_u64() else {
            break;
        };
        path = format!("/v1/access/audit?max=5&before={next}");
    }
    let made = seen
        .iter()
        .filter(|record| record["verb"] == "set-principal");
    let names: Vec<&str> = made.filter_map(|record| record["on"].as_str()).collect();
    let expected: Vec<String> = (0..12)
        .rev()
        .map(|at| format!("principal:p-{at}"))
        .collect();
    assert_eq!(names, expected);
}

#[test]
fn a_host_that_asks_nobody_keeps_no_audit_log() {
    let host = crate::support::TestHost::start();
    assert_eq!(host.get("/v1/access/audit").json()["records"], json!([]));
    assert!(
        !host
            .get("/v1/topics")
            .json()
            .to_string()
            .contains("host.audit")
    );
}

#[test]
fn after_many_refusals_from_an_address_the_next_takes_longer_and_who_proves_it_waits_for_none() {
    let guarded = Guarded::start();
    let wrong = "mr_aaaaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let refused = || {
        guarded
            .get(wrong, "/v1/topics")
            .refused(401, "credentials-refused")
    };
    for _ in 0..16 {
        refused();
    }
    let began = Instant::now();
    refused();
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "{:?}",
        began.elapsed()
    );
    let metrics = guarded.get(&guarded.admin, "/metrics");
    let metrics = String::from_utf8_lossy(&metrics.bytes).into_owned();
    assert!(
        metrics.contains("millrace_refusals_held_back_total"),
        "{metrics}"
    );
}
