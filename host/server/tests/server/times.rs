//! Times, on every route: one grammar, in milliseconds; numbers that look like another unit are
//! refused with a hint.

use std::process::Output;

use serde_json::{Value, json};

use crate::processing::with_uppercase;
use crate::support::{TestHost, program};

const MESSAGES: &str = "/v1/topics/in/messages";
const FETCH: &str = "/v1/topics/in/partitions/0/messages";

fn millrace(host: &TestHost, arguments: &[&str]) -> Output {
    let mut command = program();
    let command = command.args(arguments).env("MILLRACE_HOST", host.url());
    command.output().expect("the binary runs")
}

fn now_ms() -> u64 {
    use millrace_model::Clock;
    millrace_model::SystemClock::new().wall().0
}

fn end(host: &TestHost) -> Value {
    host.get(FETCH).json()["end"].clone()
}

#[test]
fn a_time_in_another_unit_is_refused_at_every_door_with_what_to_write() {
    let host = with_uppercase(TestHost::start());
    let seconds = now_ms() / 1_000 + 3_600;
    for (given, unit) in [
        (seconds, "seconds"),
        (seconds * 1_000_000, "microseconds"),
        (seconds * 1_000_000_000, "nanoseconds"),
    ] {
        let means = format!("looks like {unit}; times are milliseconds: write {seconds}000");
        let told = |answer: crate::support::Answer| {
            let message = answer.json()["error"]["message"].to_string();
            assert!(matches!(answer.status, 400 | 422), "{message}");
            assert!(message.contains(&means), "{message}");
        };
        for field in ["deliver_at", "timestamp"] {
            let message = json!({"value": "early", field: given});
            told(host.post_json(MESSAGES, message.to_string()));
            let many = json!({"messages": [{"value": "fine"}, message]});
            told(host.post_json(MESSAGES, many.to_string()));
            let lines = [("content-type", "application/x-ndjson")];
            told(host.call("POST", MESSAGES, &lines, message.to_string()));
        }
        let raw = [("content-type", "text/plain")];
        let path = format!("{MESSAGES}?deliver_at={given}");
        told(host.call("POST", &path, &raw, "early"));
        told(host.get(&format!("{FETCH}?from=timestamp:{given}")));
        told(host.get(&format!("{FETCH}?from_time={given}")));
        for field in ["since", "until"] {
            let letters = "/v1/processors/shout/dead-letters";
            told(host.get(&format!("{letters}?{field}={given}")));
            let body = json!({"filter": {field: given}}).to_string();
            told(host.post_json(&format!("{letters}/redrive"), body));
        }
        for field in ["from", "until"] {
            let mut body = json!({"from": 0, "into": "out"});
            body[field] = json!(given);
            told(host.post_json("/v1/processors/shout/replay", body.to_string()));
        }
        let given = given.to_string();
        let at = format!("timestamp:{given}");
        for command in [
            &["produce", "in", "--deliver-at", &given, "early"][..],
            &["consume", "in", "--from", &at],
            &["dlq", "list", "shout", "--since", &given],
            &["dlq", "list", "shout", "--until", &given],
            &[
                "processor",
                "replay",
                "shout",
                "--from",
                &given,
                "--into",
                "out",
            ],
        ] {
            let output = millrace(&host, command);
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{command:?} {told}");
            assert!(told.contains(&means), "{command:?} {told}");
        }
    }
    assert_eq!(end(&host), 0, "nothing was stored");
}

#[test]
fn every_door_and_every_command_takes_the_same_times() {
    let host = with_uppercase(TestHost::start());
    let message = json!({"value": "an hour ago", "timestamp": now_ms() - 3_600_000});
    assert_eq!(host.post_json(MESSAGES, message.to_string()).status, 200);
    for time in [
        "-2h",
        "2h",
        "2026-01-01",
        "2026-01-01T00:00:00Z",
        "1700000000000",
    ] {
        let found = host.get(&format!("{FETCH}?from_time={time}")).json();
        assert_eq!(found["messages"][0]["value"], "an hour ago", "{time}");
        let letters = host.get(&format!("/v1/processors/shout/dead-letters?since={time}"));
        assert_eq!(letters.status, 200, "{time}");
        let time_of = |time: &str| match time.parse::<u64>() {
            Ok(_) => format!("timestamp:{time}"),
            Err(_) => time.to_owned(),
        };
        for command in [
            &["consume", "in", "--from", &time_of(time)][..],
            &["dlq", "list", "shout", "--since", time, "--until", "now"],
            &[
                "processor",
                "replay",
                "shout",
                "--from",
                time,
                "--until",
                "now",
                "--into",
                "out",
            ],
            &["produce", "in", "--deliver-at", "2026-01-01", "at once"],
        ] {
            let output = millrace(&host, command);
            assert!(output.status.success(), "{command:?} {output:?}");
        }
    }
    let delayed = millrace(&host, &["produce", "in", "--deliver-at", "1h", "later"]);
    let told = String::from_utf8_lossy(&delayed.stdout).into_owned();
    assert!(told.contains("delayed"), "{told}");
    let body = json!({"from": "-2h", "until": "now", "into": "out"}).to_string();
    let made = host.post_json("/v1/processors/shout/replay", body);
    assert_eq!(made.status, 201, "{}", made.json());
}

#[test]
fn a_timestamp_far_ahead_is_refused_and_one_of_another_time_zone_is_not() {
    let host = TestHost::start().with_topic("in", 1);
    let produce = |message: Value| host.post_json(MESSAGES, message.to_string());
    let hour = 3_600_000;
    let now = now_ms();
    assert_eq!(
        produce(json!({"value": 1, "timestamp": now + 14 * hour})).status,
        200
    );
    for ahead in [now + 25 * hour, now + 365 * 24 * hour, i64::MAX as u64] {
        let message = json!({"value": 2, "timestamp": ahead});
        produce(message).refused(422, "timestamp-ahead");
    }
    // The time of delivery itself is not in the future.
    let due = now + 100 * hour;
    let later = json!({"value": 3, "deliver_at": due, "timestamp": due});
    assert_eq!(produce(later).status, 200);
    assert_eq!(end(&host), 1);
}

#[test]
fn an_offset_that_no_partition_has_come_to_is_not_an_empty_answer() {
    let host = TestHost::start().with_topic("in", 2);
    let lines = [("content-type", "application/x-ndjson")];
    host.call("POST", MESSAGES, &lines, "{\"value\":1,\"partition\":0}\n");
    for from in ["2", "1795255200"] {
        let output = millrace(&host, &["consume", "in", "--from", from]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{told}");
        assert!(
            told.contains("ends at 1") && told.contains("timestamp:"),
            "{told}"
        );
    }
    // Partitions differ: an offset that one of them has reached is accepted.
    let output = millrace(&host, &["consume", "in", "--from", "1"]);
    assert!(output.status.success(), "{output:?}");
}
