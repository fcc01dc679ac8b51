//! Consumers over HTTP and with the command line: which messages come next, what is committed, and
//! who may commit.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{ask, millrace, out};
use crate::support::{Answer, TestHost};

const CONSUMER: &str = "/v1/topics/orders/consumers/billing";

/// A host with a topic of three partitions.
fn host() -> TestHost {
    TestHost::start().with_topic("orders", 3)
}

/// Produces messages with these numbers to the three partitions in turn.
fn produce(host: &TestHost, numbers: std::ops::Range<u32>) {
    let message = |number: u32| json!({"value": number.to_string(), "partition": number % 3});
    let body = json!({"messages": numbers.map(message).collect::<Vec<_>>()});
    let path = "/v1/topics/orders/messages";
    assert_eq!(host.post_json(path, body.to_string()).status, 200);
}

fn read(host: &TestHost, query: &str) -> Answer {
    host.get(&format!("{CONSUMER}/messages?{query}"))
}

fn commit(host: &TestHost, body: &Value) -> Answer {
    host.post_json(&format!("{CONSUMER}/commit"), body.to_string())
}

fn values(answer: &Value) -> Vec<u32> {
    let messages = answer["messages"].as_array().expect("messages").iter();
    let mut values: Vec<u32> = messages
        .map(|m| {
            m["value"]
                .as_str()
                .expect("text")
                .parse()
                .expect("a number")
        })
        .collect();
    values.sort_unstable();
    values
}

/// The committed position of each partition.
fn positions(host: &TestHost) -> Vec<u64> {
    let shown = host.get(CONSUMER).json();
    let places = shown["partitions"].as_array().expect("partitions").iter();
    places
        .map(|place| place["position"].as_u64().expect("a position"))
        .collect()
}

#[test]
fn an_answer_gives_what_to_send_back_and_the_next_one_goes_on_there() {
    let host = host();
    produce(&host, 0..10);
    let first = read(&host, "max=1000").json();
    assert_eq!(values(&first), (0..10).collect::<Vec<_>>());
    assert_eq!(first["created"], true);
    let lease = first["commit"]["lease"].as_str().expect("a lease");
    // Until they are committed the same messages come again.
    let again = read(&host, &format!("max=1000&lease={lease}")).json();
    assert_eq!(values(&again), (0..10).collect::<Vec<_>>());
    assert_eq!(again["created"], false);
    let committed = commit(&host, &first["commit"]);
    assert_eq!(committed.status, 200, "{}", committed.json());
    assert!(committed.json()["leased_until"].is_u64());
    assert_eq!(positions(&host), [4, 3, 3]);
    produce(&host, 10..12);
    let next = read(&host, &format!("lease={lease}")).json();
    assert_eq!(values(&next), [10, 11]);
    assert_eq!(next["commit"]["positions"], "1:4,2:4");
    let shown = host.get(CONSUMER).json();
    assert_eq!(shown["lag"], 2);
    assert_eq!(shown["reader"]["by"], "unknown");
    assert!(shown["committed_at"].is_u64());
    // If there is nothing to read, there is nothing to commit; the commit still renews the lease.
    commit(&host, &next["commit"]);
    let nothing = read(&host, &format!("lease={lease}")).json();
    assert_eq!(nothing["commit"]["positions"], "");
    assert_eq!(commit(&host, &nothing["commit"]).status, 200);
}

#[test]
fn every_partition_gets_its_share_and_none_is_skipped() {
    let host = host();
    produce(&host, 0..100);
    let mut all = Vec::new();
    let mut query = "max=7".to_owned();
    for _ in 0..100 {
        let answer = read(&host, &query).json();
        let read = values(&answer);
        if read.is_empty() {
            break;
        }
        assert!(read.len() <= 7, "{read:?}");
        all.extend(read);
        assert_eq!(commit(&host, &answer["commit"]).status, 200);
        let lease = answer["commit"]["lease"].as_str().expect("a lease");
        query = format!("max=7&lease={lease}");
    }
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>(), "each once");
}

#[test]
fn a_second_reader_is_told_until_when_and_takes_over_then() {
    let host = host();
    produce(&host, 0..3);
    let first = read(&host, "lease_ms=60000").json();
    let busy = read(&host, "");
    let told = busy.refused(409, "consumer-busy");
    assert!(
        told.contains("is being read by somebody") && told.contains("until 20"),
        "{told}"
    );
    let retry_after = busy.headers["retry-after"].to_str().expect("text");
    let retry_after: u64 = retry_after.parse().expect("seconds");
    assert!((1..=60).contains(&retry_after), "{retry_after}");
    // Once the lease is given back, the next reader need not wait.
    let mut last = first["commit"].clone();
    last["release"] = json!(true);
    last["positions"] = json!("0:1");
    assert_eq!(commit(&host, &last).json()["leased_until"], Value::Null);
    let second = read(&host, "lease_ms=100").json();
    assert_eq!(values(&second), [1, 2], "nothing is skipped");
    let lost = commit(&host, &first["commit"]).refused(409, "lease-lost");
    assert!(lost.contains("has taken over"), "{lost}");
    // The second reader leaves without giving its lease back.
    let mut third = read(&host, "");
    for _ in 0..3_000 {
        if third.status == 200 {
            break;
        }
        third.refused(409, "consumer-busy");
        std::thread::sleep(Duration::from_millis(10));
        third = read(&host, "");
    }
    assert_eq!(values(&third.json()), [1, 2]);
    commit(&host, &second["commit"]).refused(409, "lease-lost");
    let lease = second["commit"]["lease"].as_str().expect("a lease");
    read(&host, &format!("lease={lease}")).refused(409, "lease-lost");
    assert_eq!(commit(&host, &third.json()["commit"]).status, 200);
    assert_eq!(positions(&host), [1, 1, 1]);
}

#[test]
fn a_reader_that_waits_is_woken_by_any_partition() {
    let host = host();
    let lease = read(&host, "").json()["commit"]["lease"].clone();
    let lease = lease.as_str().expect("a lease");
    std::thread::scope(|scope| {
        let path = format!("wait_ms=30000&lease={lease}");
        let host = &host;
        let waiting = scope.spawn(move || read(host, &path).json());
        produce(host, 2..3);
        assert_eq!(values(&waiting.join().expect("an answer")), [2]);
    });
}

#[test]
fn messages_that_were_removed_are_said_to_be_passed_over() {
    let host = host();
    produce(&host, 0..30);
    let first = read(&host, "max=3").json();
    let lease = first["commit"]["lease"].as_str().expect("a lease");
    let trim = |body: Value| {
        let trimmed = host.post_json("/v1/topics/orders/trim", body.to_string());
        assert_eq!(trimmed.status, 200, "{}", trimmed.json());
    };
    trim(json!({"partition": 0, "before": 6}));
    trim(json!({"partition": 1, "before": "end"}));
    // It does not wait, even if there are no messages.
    let path = format!("max=1000&wait_ms=30000&lease={lease}");
    let answer = read(&host, &path).json();
    let stood = positions(&host);
    assert_eq!(
        answer["passed_over"],
        json!([
            {"partition": 0, "from": stood[0], "to": 6},
            {"partition": 1, "from": stood[1], "to": 10},
        ])
    );
    assert_eq!(answer["commit"]["positions"], "0:10,1:10,2:10");
    assert_eq!(values(&answer).len(), 4 + 10);
    assert_eq!(host.get(CONSUMER).json()["lag"], 4 + 10);
    assert_eq!(commit(&host, &answer["commit"]).status, 200);
    let after = read(&host, &format!("lease={lease}")).json();
    assert_eq!(
        after["passed_over"],
        Value::Null,
        "it is said until it is committed"
    );
}

#[test]
fn what_is_not_understood_is_refused_and_changes_nothing() {
    let host = host();
    produce(&host, 0..9);
    let first = read(&host, "").json();
    let lease = first["commit"]["lease"].clone();
    let refused = |body: Value, status, code| commit(&host, &body).refused(status, code);
    let with = |positions: &str| json!({"lease": lease, "positions": positions});
    refused(with("0:4"), 422, "position-past-end");
    refused(with("3:1"), 404, "unknown-partition");
    for wrong in ["0", "0:", "0:1,0:2", "a:1", "0:-1", "0:1;1:1"] {
        let told = refused(with(wrong), 400, "malformed");
        assert!(told.contains("positions"), "{told}");
    }
    refused(json!({"lease": "me", "positions": "0:1"}), 400, "malformed");
    refused(json!({"positions": "0:1"}), 400, "malformed");
    refused(json!({"lease": lease, "position": "0:1"}), 400, "malformed");
    let other = json!({"lease": "0123456789abcdef", "positions": "0:1"});
    refused(other, 409, "lease-lost");
    assert_eq!(positions(&host), [0, 0, 0]);
    assert_eq!(commit(&host, &with("0:2")).status, 200);
    let behind = refused(with("0:1"), 409, "position-behind");
    assert!(behind.contains("reset"), "{behind}");
    for query in ["lease=x", "max=x", "from=yesterday", "form=latest"] {
        read(&host, query).refused(400, "malformed");
    }
    let none = host.get("/v1/topics/nope/consumers/billing/messages");
    none.refused(404, "unknown-topic");
    let none = host.get("/v1/topics/orders/consumers/a%20b/messages");
    none.refused(400, "malformed");
    let none = host.get("/v1/topics/orders/consumers/nobody");
    none.refused(404, "unknown-consumer");
    let reset = |body: Value| host.post_json(&format!("{CONSUMER}/reset"), body.to_string());
    reset(json!({"to": "yesterday"})).refused(400, "malformed");
    reset(json!({})).refused(400, "malformed");
    reset(json!({"to": "earliest", "partition": 3})).refused(404, "unknown-partition");
    assert_eq!(positions(&host), [2, 0, 0]);
}

#[test]
fn consumers_are_made_listed_reset_and_deleted_and_go_with_their_topic() {
    let host = TestHost::start();
    let host = host.with_topic("orders", 3).with_topic("other", 1);
    produce(&host, 0..30);
    let put = |path: &str| host.call("PUT", path, &[], "");
    let made = put(&format!("{CONSUMER}?from=latest"));
    assert_eq!((made.status, made.json()["lag"].as_u64()), (201, Some(0)));
    let same = put(&format!("{CONSUMER}?from=earliest"));
    assert_eq!((same.status, same.json()["lag"].as_u64()), (200, Some(0)));
    put(&format!("{CONSUMER}?from=nowhere")).refused(400, "malformed");
    assert_eq!(put("/v1/topics/other/consumers/billing").status, 201);
    let names = |path: &str| {
        let listed = host.get(path).json();
        let consumers = listed["consumers"].as_array().expect("consumers").iter();
        consumers
            .map(|one| format!("{}/{}", one["topic"], one["name"]).replace('"', ""))
            .collect::<Vec<_>>()
    };
    assert_eq!(names("/v1/consumers"), ["orders/billing", "other/billing"]);
    assert_eq!(names("/v1/topics/other/consumers"), ["other/billing"]);
    let by = [("content-type", "application/json"), ("millrace-by", "eve")];
    let body = r#"{"to":"7","partition":1}"#;
    let reset = host.call("POST", &format!("{CONSUMER}/reset"), &by, body);
    assert_eq!(reset.json()["reset_by"], "eve");
    assert_eq!(positions(&host), [10, 7, 10]);
    assert_eq!(host.call("DELETE", CONSUMER, &[], "").status, 204);
    host.call("DELETE", CONSUMER, &[], "")
        .refused(404, "unknown-consumer");
    assert_eq!(host.call("DELETE", "/v1/topics/other", &[], "").status, 204);
    assert_eq!(names("/v1/consumers"), [""; 0]);
}

/// `consume orders --as billing`, with its output piped.
fn consuming(host: &TestHost, more: &[&str]) -> Child {
    let url = host.url();
    let arguments = ["consume", "orders", "--as", "billing", "--host", &url];
    millrace(&[&arguments[..], more].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs")
}

/// The values of printed lines, in order.
fn printed(text: &str) -> Vec<u32> {
    let last = |line: &str| line.rsplit('\t').next()?.trim_end().parse().ok();
    let mut values: Vec<u32> = text.lines().filter_map(last).collect();
    values.sort_unstable();
    values
}

fn interrupt(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let status = std::process::Command::new("kill")
        .args([signal, &pid])
        .status();
    assert!(status.expect("kill runs").success());
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came to {what}");
}

#[test]
fn the_command_goes_on_where_the_last_one_stopped() {
    let host = host();
    produce(&host, 0..30);
    let consume = |more: &[&str]| {
        let arguments = [&["consume", "orders", "--as", "billing"], more].concat();
        printed(&out(&ask(&host, &arguments)))
    };
    let first = consume(&["--max", "7"]);
    assert_eq!(first.len(), 7);
    let rest = consume(&[]);
    let mut all = [first, rest].concat();
    all.sort_unstable();
    assert_eq!(all, (0..30).collect::<Vec<_>>());
    assert_eq!(consume(&[]), [0; 0]);
    produce(&host, 30..33);
    assert_eq!(consume(&["--from", "earliest"]), [30, 31, 32]);
    let shown = out(&ask(&host, &["consumer", "list"]));
    assert!(
        shown.contains("billing") && !shown.contains("until"),
        "{shown}"
    );
    out(&ask(
        &host,
        &[
            "consumer",
            "reset",
            "orders",
            "billing",
            "--to",
            "9",
            "--partition",
            "0",
        ],
    ));
    assert_eq!(consume(&["--json", "--max", "0"]), [0; 0]);
    assert_eq!(consume(&[]), [27, 30]);
    out(&ask(&host, &["consumer", "delete", "orders", "billing"]));
    assert_eq!(consume(&["--from", "latest"]), [0; 0]);
    let wrong = ask(
        &host,
        &["consume", "orders", "--as", "billing", "--partition", "1"],
    );
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn an_interrupt_ends_in_order_and_commits_what_was_printed() {
    for signal in ["-INT", "-TERM"] {
        let host = host();
        produce(&host, 0..9);
        let mut child = consuming(&host, &["--follow"]);
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        for _ in 0..9 {
            lines.next().expect("a line").expect("read");
        }
        produce(&host, 9..12);
        let more: Vec<String> = (0..3)
            .map(|_| lines.next().expect("a line").expect("read"))
            .collect();
        assert_eq!(printed(&more.join("\n")), [9, 10, 11]);
        wait_until("the commit", || positions(&host) == [4, 4, 4]);
        interrupt(&child, signal);
        let ended = child.wait_with_output().expect("an end");
        assert!(ended.status.success(), "{ended:?}");
        assert_eq!(positions(&host), [4, 4, 4]);
        assert_eq!(
            host.get(CONSUMER).json()["reader"],
            Value::Null,
            "given back"
        );
    }
}

#[test]
fn an_interrupt_amid_printing_leaves_the_rest_to_the_next_one() {
    let host = host();
    let long = "x".repeat(10_000);
    let message = |number: u32| json!({"key": number.to_string(), "value": long, "partition": 0});
    let body = json!({"messages": (0..200).map(message).collect::<Vec<_>>()});
    let path = "/v1/topics/orders/messages";
    assert_eq!(host.post_json(path, body.to_string()).status, 200);
    let mut child = consuming(&host, &[]);
    // The pipe is not read, so it is full before everything is written.
    wait_until("a reader", || {
        let shown = host.get(CONSUMER);
        shown.status == 200 && shown.json()["reader"].is_object()
    });
    interrupt(&child, "-INT");
    let mut text = String::new();
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_to_string(&mut text).expect("read");
    let ended = child.wait().expect("an end");
    let written = text.lines().count() as u64;
    assert_eq!(
        positions(&host)[0],
        written,
        "what was printed is committed"
    );
    assert_eq!(ended.code(), Some(if written == 200 { 0 } else { 130 }));
    let rest = out(&ask(&host, &["consume", "orders", "--as", "billing"]));
    assert_eq!(rest.lines().count() as u64 + written, 200);
}

#[test]
fn a_closed_pipe_commits_what_it_took_and_no_more() {
    let host = host();
    let long = "x".repeat(10_000);
    let message = |number: u32| json!({"key": number.to_string(), "value": long, "partition": 0});
    let body = json!({"messages": (0..200).map(message).collect::<Vec<_>>()});
    let path = "/v1/topics/orders/messages";
    assert_eq!(host.post_json(path, body.to_string()).status, 200);
    let mut child = consuming(&host, &[]);
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for _ in 0..5 {
        lines.next().expect("a line").expect("read");
    }
    drop(lines);
    let ended = child.wait_with_output().expect("an end");
    assert!(ended.status.success(), "{ended:?}");
    let committed = positions(&host)[0];
    // A pipe takes somewhat more than was read of it, but never everything.
    assert!((5..100).contains(&committed), "{committed}");
    let rest = out(&ask(&host, &["consume", "orders", "--as", "billing"]));
    let first = rest.lines().next().expect("a line");
    assert!(
        first.starts_with(&format!("0/{committed}\t{committed}\t")),
        "{first:.40}"
    );
    assert_eq!(rest.lines().count() as u64, 200 - committed);
}

#[test]
fn a_second_command_is_refused_or_waits_and_takes_over() {
    let host = host();
    produce(&host, 0..3);
    let mut first = consuming(&host, &["--follow", "--lease", "1"]);
    let mut lines = BufReader::new(first.stdout.take().expect("a pipe")).lines();
    for _ in 0..3 {
        lines.next().expect("a line").expect("read");
    }
    wait_until("the commit", || positions(&host) == [1, 1, 1]);
    let refused = ask(&host, &["consume", "orders", "--as", "billing"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        told.contains("is being read by") && told.contains("--retry-for"),
        "{told}"
    );
    let mut second = consuming(&host, &["--follow"]);
    let mut told = BufReader::new(second.stderr.take().expect("a pipe")).lines();
    let note = told.next().expect("a line").expect("read");
    assert!(
        note.contains("is being read by") && note.contains("trying again"),
        "{note}"
    );
    first.kill().expect("killed");
    first.wait().expect("an end");
    produce(&host, 3..6);
    let mut lines = BufReader::new(second.stdout.take().expect("a pipe")).lines();
    let more: Vec<String> = (0..3)
        .map(|_| lines.next().expect("a line").expect("read"))
        .collect();
    assert_eq!(
        printed(&more.join("\n")),
        [3, 4, 5],
        "it goes on where the first one stopped"
    );
    interrupt(&second, "-TERM");
    assert!(second.wait().expect("an end").success());
    assert_eq!(positions(&host), [2, 2, 2]);
}

#[test]
fn a_reset_reaches_the_command_that_reads_and_a_deletion_ends_it() {
    let host = host();
    produce(&host, 0..3);
    let mut child = consuming(&host, &["--follow"]);
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut three = || {
        let lines: Vec<String> = (0..3)
            .map(|_| lines.next().expect("a line").expect("read"))
            .collect();
        printed(&lines.join("\n"))
    };
    assert_eq!(three(), [0, 1, 2]);
    wait_until("the commit", || positions(&host) == [1, 1, 1]);
    out(&ask(
        &host,
        &["consumer", "reset", "orders", "billing", "--to", "earliest"],
    ));
    // It waits at the host, and a message makes it return.
    produce(&host, 3..6);
    let mut again = [three(), three()].concat();
    again.sort_unstable();
    assert_eq!(
        again,
        [0, 1, 2, 3, 4, 5],
        "from the new positions on, nothing in between"
    );
    wait_until("the commit", || positions(&host) == [2, 2, 2]);
    out(&ask(&host, &["consumer", "delete", "orders", "billing"]));
    produce(&host, 6..9);
    let ended = child.wait_with_output().expect("an end");
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        told.contains("has reset the positions since then"),
        "{told}"
    );
    assert!(told.contains("has no consumer billing"), "{told}");
    host.get(CONSUMER).refused(404, "unknown-consumer");
}
