//! `Idempotency-Key` on a real host: requests take effect once, repeats get the same answer, and a
//! key that is reused for another request is refused.

use serde_json::{Value, json};

use crate::support::{Answer, TestHost, program};

const MESSAGES: &str = "/v1/topics/orders/messages";

fn send(host: &TestHost, path: &str, content_type: &str, key: &str, body: &str) -> Answer {
    let headers = [("content-type", content_type), ("idempotency-key", key)];
    host.call("POST", path, &headers, body)
}

fn is_replayed(answer: &Answer) -> bool {
    answer
        .headers
        .get("idempotent-replayed")
        .is_some_and(|value| value == "true")
}

fn count(host: &TestHost, topic: &str) -> u64 {
    let shown = host.get(&format!("/v1/topics/{topic}")).json();
    let ends = shown["ends"].as_array().expect("ends").iter();
    ends.map(|end| end["end"].as_u64().expect("an end")).sum()
}

#[test]
fn a_request_with_a_key_takes_effect_once_and_is_answered_the_same_again() {
    let host = TestHost::start()
        .with_topic("orders", 3)
        .with_topic("returns", 3);
    let many =
        r#"{"messages":[{"value":1},{"key":"k","value":2},{"value":3},{"partition":2,"value":4}]}"#;
    let lines = "{\"value\":\"a\"}\n{\"key\":\"x\",\"value\":\"b\"}\n";
    for (content_type, body, messages) in [
        ("application/json", many, 4),
        ("application/x-ndjson", lines, 2),
        ("text/plain", "raw", 1),
    ] {
        let key = format!("\"key of {messages}\"").replace(' ', "-");
        let before = count(&host, "orders");
        let first = send(&host, MESSAGES, content_type, &key, body);
        assert_eq!((first.status, is_replayed(&first)), (200, false));
        for _ in 0..5 {
            let again = send(&host, MESSAGES, content_type, &key, body);
            assert_eq!((again.status, is_replayed(&again)), (200, true));
            assert_eq!(again.json()["placed"], first.json()["placed"]);
            assert_eq!(again.json()["repeated"], true);
        }
        assert_eq!(count(&host, "orders"), before + messages);
        // The key belongs to its topic.
        let elsewhere = "/v1/topics/returns/messages";
        let elsewhere = send(&host, elsewhere, content_type, &key, body);
        assert_eq!((elsewhere.status, is_replayed(&elsewhere)), (200, false));
    }
    // Without a key, or with a new one, the same body is another request.
    let plain = host.post_json(MESSAGES, many);
    assert_eq!((plain.status, is_replayed(&plain)), (200, false));
    let new = send(&host, MESSAGES, "application/json", "new", many);
    assert_eq!((new.status, is_replayed(&new)), (200, false));
}

#[test]
fn a_key_that_comes_with_something_else_is_refused_and_nothing_is_added() {
    let host = TestHost::start().with_topic("orders", 1);
    let raw = |path: &str, name: &str, body: &str| {
        let raw = ("content-type", "text/plain");
        let headers = [raw, ("idempotency-key", "k"), (name, "v")];
        host.call("POST", path, &headers, body)
    };
    let keyed = format!("{MESSAGES}?key=a");
    assert_eq!(raw(&keyed, "millrace-header-a", "body").status, 200);
    assert!(is_replayed(&raw(&keyed, "millrace-header-a", "body")));
    // A different header of the message, key of the message, body, and form.
    for other in [
        raw(&keyed, "millrace-header-b", "body"),
        raw(&format!("{MESSAGES}?key=b"), "millrace-header-a", "body"),
        raw(&keyed, "millrace-header-a", "other"),
        send(
            &host,
            MESSAGES,
            "application/json",
            "k",
            r#"{"value":"body"}"#,
        ),
    ] {
        let told = other.refused(422, "idempotency-key-reused");
        assert!(told.contains("new"), "{told}");
    }
    assert_eq!(count(&host, "orders"), 1);
    let long = "x".repeat(256);
    for bad in ["\"open", "two words", &long] {
        let refused = send(&host, MESSAGES, "application/json", bad, r#"{"value":1}"#);
        refused.refused(400, "bad-idempotency-key");
    }
    // A refused request does not use its key up.
    let refused = send(&host, MESSAGES, "application/json", "later", "{");
    refused.refused(400, "malformed");
    let taken = send(
        &host,
        MESSAGES,
        "application/json",
        "later",
        r#"{"value":1}"#,
    );
    assert_eq!((taken.status, is_replayed(&taken)), (200, false));
}

#[test]
fn requests_with_one_key_at_once_are_all_told_the_same() {
    let host = TestHost::start().with_topic("orders", 2);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let send = || send(&host, MESSAGES, "application/json", "k", r#"{"value":1}"#);
        let sending: Vec<_> = (0..8).map(|_| scope.spawn(send)).collect();
        let sent = sending.into_iter().map(|sending| sending.join());
        sent.map(|sent| sent.expect("an answer").json()).collect()
    });
    let told = |answer: &Value| (answer["count"].clone(), answer["placed"].clone());
    assert!(
        answers
            .iter()
            .all(|answer| told(answer) == told(&answers[0]))
    );
    let firsts = answers.iter().filter(|answer| answer["repeated"] != true);
    assert_eq!(firsts.count(), 1, "the others say that they are repeats");
    assert_eq!(answers[0]["count"], json!(1));
    assert_eq!(count(&host, "orders"), 1);
}

#[test]
fn a_repeat_says_that_it_is_one_and_what_is_no_longer_there() {
    let host = TestHost::start().with_topic("orders", 1);
    let body = r#"{"messages":[{"value":1},{"value":2},{"value":3}]}"#;
    let again = || send(&host, MESSAGES, "application/json", "k", body).json();
    assert_eq!(again()["repeated"], Value::Null);
    let gone = |answer: &Value| {
        let places = answer["placed"].as_array().expect("places").iter();
        places
            .map(|place| place["gone"] == true)
            .collect::<Vec<_>>()
    };
    assert_eq!(gone(&again()), [false; 3]);
    let trim = |before: &str| {
        let body = format!("{{\"before\":{before}}}");
        assert_eq!(host.post_json("/v1/topics/orders/trim", body).status, 200);
    };
    trim("2");
    assert_eq!(gone(&again()), [true, true, false]);
    trim("\"end\"");
    assert_eq!(gone(&again()), [true; 3]);
    assert_eq!(count(&host, "orders"), 3, "nothing was added");

    // The keys are removed with the topic: what follows is not a repeat.
    assert_eq!(
        host.call("DELETE", "/v1/topics/orders", &[], "").status,
        204
    );
    let host = host.with_topic("orders", 1);
    let anew = send(&host, MESSAGES, "application/json", "k", body).json();
    assert_eq!(anew["repeated"], Value::Null);
    assert_eq!(count(&host, "orders"), 3);
}

#[test]
fn the_command_line_says_of_a_repeat_that_nothing_was_added() {
    let host = TestHost::start().with_topic("orders", 1);
    let produce = |key: &str, values: &[&str]| {
        let output = program()
            .args(["produce", "orders", "--idempotency-key", key])
            .args(values)
            .env("MILLRACE_HOST", host.url())
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(produce("a", &["1", "2"]), "2 messages in 1 commit\n");
    let said = "repeated: nothing was added; 2 messages were already there";
    assert_eq!(produce("a", &["1", "2"]), format!("{said}\n"));
    assert_eq!(
        host.post_json("/v1/topics/orders/trim", r#"{"before":1}"#)
            .status,
        200
    );
    let told = produce("a", &["1", "2"]);
    assert!(
        told.starts_with(said) && told.contains("1 no longer kept"),
        "{told}"
    );
    assert!(!produce("b", &["1", "2"]).contains("repeated"));
}
