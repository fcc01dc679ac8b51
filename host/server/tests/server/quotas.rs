//! Quotas of principals: who is over one is told when to come back, and others notice nothing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::access::Guarded;
use crate::cli::{millrace, out};

impl Guarded {
    fn limit(&self, name: &str, quotas: &Value) -> Value {
        let path = format!("/v1/access/principals/{name}/quotas");
        let limited = self.call(&self.admin, "PATCH", &path, quotas);
        assert_eq!(limited.status, 200, "{}", limited.json());
        limited.json()
    }
}

#[test]
fn who_sends_too_much_is_told_when_to_come_back_and_others_go_on() {
    let guarded = Guarded::start().with_topic("orders");
    let shop = guarded.principal("shop", &["producer on topic:orders"]);
    let other = guarded.principal("other", &["producer on topic:orders"]);
    guarded.limit("shop", &json!({"produced_messages": 1}));
    let many = json!({"messages": vec![json!({"value": "grain"}); 100]});
    let path = "/v1/topics/orders/messages";
    assert_eq!(guarded.call(&shop, "POST", path, &many).status, 200);
    let over = guarded.call(&shop, "POST", path, &many);
    let after: u64 = over.headers["retry-after"]
        .to_str()
        .expect("a number")
        .parse()
        .expect("a number");
    assert!((90..=100).contains(&after), "{after}");
    let said = over.refused(429, "over-quota");
    assert!(said.contains("1 messages sent a second"), "{said}");
    assert_eq!(guarded.call(&other, "POST", path, &many).status, 200);
    let topic = guarded.get(&guarded.admin, "/v1/topics/orders").json();
    assert_eq!(
        topic["ends"][0]["messages"], 200,
        "nothing of it was stored"
    );
    guarded.limit("shop", &json!({"produced_messages": null}));
    assert_eq!(guarded.call(&shop, "POST", path, &many).status, 200);
}

#[test]
fn who_reads_too_much_waits_and_then_reads_on() {
    let guarded = Guarded::start().with_topic("orders");
    let many = json!({"messages": vec![json!({"value": "grain"}); 20]});
    let path = "/v1/topics/orders/messages";
    assert_eq!(
        guarded.call(&guarded.admin, "POST", path, &many).status,
        200
    );
    let reader = guarded.principal("reader", &["consumer on topic:orders"]);
    guarded.limit("reader", &json!({"read_messages": 10}));
    let read = |from: u64| {
        let path = format!("/v1/topics/orders/partitions/0/messages?from={from}&max=20");
        guarded.get(&reader, &path)
    };
    let first = read(0).json();
    assert_eq!(first["messages"].as_array().map(Vec::len), Some(20));
    read(20).refused(429, "over-quota");
    let until = Instant::now() + Duration::from_secs(60);
    while read(20).status == 429 {
        assert!(Instant::now() < until, "the quota is never paid off");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn requests_are_limited_and_counted() {
    let guarded = Guarded::start();
    let nosy = guarded.principal("nosy", &["viewer"]);
    guarded.limit("nosy", &json!({"requests": 1}));
    let refused = (0..20)
        .filter(|_| guarded.get(&nosy, "/v1/topics").status == 429)
        .count();
    assert!(refused >= 10, "{refused}");
    let metrics = guarded.get(&guarded.admin, "/metrics");
    let metrics = String::from_utf8_lossy(&metrics.bytes).into_owned();
    let counted = r#"millrace_quota_refusals_total{principal="nosy",quota="requests"}"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn quotas_are_shown_and_changed_one_by_one_on_the_command_line() {
    let guarded = Guarded::start();
    guarded.principal("shop", &["viewer"]);
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("admin");
    std::fs::write(&token, &guarded.admin).expect("written");
    let token = token.display().to_string();
    let url = guarded.host.url();
    let ask = |words: &[&str]| {
        let all = [words, &["--host", &url, "--token-file", &token]].concat();
        millrace(&all).output().expect("the binary runs")
    };
    let set = ask(&[
        "access",
        "quota",
        "shop",
        "--produced-bytes",
        "10MiB",
        "--requests",
        "500",
    ]);
    assert!(
        out(&set).contains("10MiB sent, 500 requests a second"),
        "{set:?}"
    );
    let set = ask(&["access", "quota", "shop", "--requests", "none"]);
    assert!(out(&set).contains("10MiB sent a second"), "{set:?}");
    let zero = ask(&["access", "quota", "shop", "--requests", "0"]);
    assert!(!zero.status.success());
}
