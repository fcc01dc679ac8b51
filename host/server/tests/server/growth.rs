//! More partitions for a topic, over HTTP and on the command line: the answers, what is refused,
//! and how waiting readers learn of it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::{ask, millrace, out};
use crate::support::{Answer, TestHost};

fn change(host: &TestHost, topic: &str, body: Value) -> Answer {
    let headers = [("content-type", "application/json")];
    let path = format!("/v1/topics/{topic}");
    host.call("PATCH", &path, &headers, body.to_string())
}

fn partitions(host: &TestHost, topic: &str) -> Value {
    host.get(&format!("/v1/topics/{topic}")).json()["partitions"].clone()
}

fn send(host: &TestHost, topic: &str, messages: Value) {
    let body = json!({"messages": messages}).to_string();
    let sent = host.post_json(&format!("/v1/topics/{topic}/messages"), body);
    assert_eq!(sent.status, 200, "{}", sent.json());
}

#[test]
fn a_topic_is_given_more_partitions_and_the_answer_says_what_that_means() {
    let host = TestHost::start().with_topic("orders", 2);
    let answer = change(
        &host,
        "orders",
        json!({"partitions": 4, "durability": "none"}),
    );
    assert_eq!(answer.status, 200);
    let answer = answer.json();
    assert_eq!(
        (&answer["partitions"], &answer["durability"]),
        (&json!(4), &json!("none"))
    );
    assert_eq!(answer["grown"]["before"], 2);
    assert_eq!(answer["grown"]["along"], json!([]));
    let note = answer["grown"]["note"].as_str().unwrap();
    assert!(note.contains("stay where they are"), "{note}");
    send(&host, "orders", json!([{"partition": 3, "value": "new"}]));
    let ends = host.get("/v1/topics/orders").json()["ends"].clone();
    assert_eq!(
        ends[3],
        json!({"partition": 3, "start": 0, "end": 1, "messages": 1})
    );
    let again = change(&host, "orders", json!({"partitions": 4}));
    assert_eq!((again.status, &again.json()["grown"]), (200, &Value::Null));
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do_and_changes_nothing() {
    let host = TestHost::start()
        .with_topic("orders", 2)
        .with_topic("prices", 2);
    let settings = json!({"settings": {"compact": true}});
    assert_eq!(change(&host, "prices", settings).status, 200);
    let refused = |topic: &str, body: Value, status, code: &str| {
        let told = change(&host, topic, body).refused(status, code);
        assert_eq!(partitions(&host, "orders"), 2, "{told}");
        assert_eq!(partitions(&host, "prices"), 2, "{told}");
        told
    };
    let told = refused("orders", json!({"partitions": 1}), 422, "fewer-partitions");
    assert!(told.contains("create another topic"), "{told}");
    refused("orders", json!({"partitions": 0}), 422, "fewer-partitions");
    refused(
        "orders",
        json!({"partitions": 4_000_000_000u64}),
        422,
        "bad-partitions",
    );
    for wrong in [
        json!(-1),
        json!("8"),
        json!(2.5),
        json!(1u64 << 40),
        json!([3]),
    ] {
        refused("orders", json!({"partitions": wrong}), 400, "malformed");
    }
    let both = json!({"partitions": 4, "settings": {"segment_bytes": 1}});
    refused("orders", both, 422, "bad-setting");
    refused("nothing", json!({"partitions": 4}), 404, "unknown-topic");
    let told = refused("prices", json!({"partitions": 4}), 409, "keys-would-move");
    assert!(told.contains("is compacted"), "{told}");
    assert!(told.contains("\"accept_moved_keys\": true"), "{told}");
    let accepted = json!({"partitions": 4, "accept_moved_keys": true});
    let answer = change(&host, "prices", accepted).json();
    assert_eq!(answer["partitions"], 4);
    let note = answer["grown"]["note"].as_str().unwrap();
    assert!(note.contains("is compacted"), "{note}");
}

#[test]
fn the_host_has_no_more_partitions_than_it_may() {
    let mut config = crate::support::config();
    config.limits.partitions_max = Some(6);
    let host = TestHost::with(config).with_topic("orders", 2);
    let told = change(&host, "orders", json!({"partitions": 7})).refused(422, "partitions-full");
    assert!(told.contains("with 5 more"), "{told}");
    assert_eq!(
        change(&host, "orders", json!({"partitions": 6})).status,
        200
    );
}

#[test]
fn a_reader_that_waits_for_all_partitions_is_answered_when_there_are_more() {
    let host = TestHost::start().with_topic("orders", 2);
    let path = "/v1/topics/orders/messages?wait_ms=20000";
    let (first, last) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let began_at = Instant::now();
            (host.get(path).json(), began_at.elapsed())
        });
        // It cannot be seen from outside when it begins to wait.
        let mut count = 2;
        while !waiting.is_finished() {
            count += 1;
            let grown = change(&host, "orders", json!({"partitions": count}));
            assert_eq!(grown.status, 200);
            std::thread::sleep(Duration::from_millis(100));
        }
        let (answer, took) = waiting.join().unwrap();
        assert!(took < Duration::from_secs(18), "{took:?}");
        (answer, count - 1)
    });
    assert_eq!(first["messages"], json!([]));
    assert!(first["partitions"].as_u64().unwrap() > 2, "{first}");
    send(
        &host,
        "orders",
        json!([{"partition": last, "value": "new"}]),
    );
    let next = first["next"].as_str().unwrap();
    let read = host.get(&format!("{path}&from={next}")).json();
    assert_eq!(read["messages"][0]["value"], "new");
    let place = format!(",{last}:1");
    assert!(read["next"].as_str().unwrap().ends_with(&place), "{read}");
}

#[test]
fn the_command_line_asks_says_what_it_means_and_follows_into_new_partitions() {
    let host = TestHost::start()
        .with_topic("orders", 2)
        .with_topic("prices", 1);
    let url = host.url();
    let mut follower = millrace(&["consume", "orders", "--follow", "--json", "--host", &url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let mut next = || -> Value {
        let line = lines.next().expect("a line").expect("text");
        serde_json::from_str(&line).expect("JSON")
    };
    send(&host, "orders", json!([{"partition": 1, "value": "a"}]));
    assert_eq!(next()["value"], "a");

    let set = |more: &[&str]| ask(&host, &[&["topic", "set"][..], more].concat());
    let done = set(&["orders", "--partitions", "3"]);
    assert!(done.status.success(), "{done:?}");
    let said = out(&done);
    assert!(
        said.contains("orders now has 3 partitions instead of 2"),
        "{said}"
    );
    assert!(said.contains("in order only within each"), "{said}");
    send(&host, "orders", json!([{"partition": 2, "value": "b"}]));
    assert_eq!(next()["value"], "b");
    assert!(set(&["orders", "--partitions", "9"]).status.success());
    send(
        &host,
        "orders",
        json!([{"partition": 8, "value": "c"}, {"partition": 0, "value": "d"}]),
    );
    let mut both = [next(), next()].map(|message| message["value"].to_string());
    both.sort();
    assert_eq!(both, ["\"c\"", "\"d\""]);
    follower.kill().expect("killed");
    follower.wait().expect("an end");

    assert!(set(&["prices", "--compact"]).status.success());
    let refused = set(&["prices", "--partitions", "2"]);
    assert!(!refused.status.success());
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("--accept-moved-keys"), "{told}");
    assert_eq!(partitions(&host, "prices"), 1);
    assert!(
        set(&["prices", "--partitions", "2", "--accept-moved-keys"])
            .status
            .success()
    );
    assert_eq!(partitions(&host, "prices"), 2);
    let alone = set(&["prices", "--accept-moved-keys"]);
    assert_eq!(alone.status.code(), Some(2), "it says of what: {alone:?}");
}
