//! Dead letters over HTTP: which are found, what is refused with a reason, and who is recorded as
//! the caller.

use millrace_tests::wait_for;
use serde_json::{Value, json};

use crate::support::TestHost;

const LETTERS: &str = "/v1/processors/p/dead-letters";

/// A host with two dead letters: keys `a` and a byte that is no text.
fn with_two_letters() -> TestHost {
    let host = TestHost::start().with_topic("in", 1).with_topic("out", 1);
    let bytes = guest_artifacts::FLAKY.to_vec();
    let module = host.call("POST", "/v1/modules", &[], bytes).json();
    let spec = json!({"topics": ["in"], "module": module["digest"], "output": "out"});
    let deployed = host.call("PUT", "/v1/processors/p", &[], spec.to_string());
    assert_eq!(deployed.status, 201);
    let headers = json!({"reject": "late"});
    let messages = json!({"messages": [
        {"key": "a", "value": "1", "headers": headers},
        {"key_base64": "/w==", "value": "2", "headers": headers},
    ]});
    host.post_json("/v1/topics/in/messages", messages.to_string());
    let both = wait_for("two dead letters", || {
        let letters = host.get(LETTERS).json()["dead_letters"].clone();
        Ok((letters.as_array().map(Vec::len) == Some(2)).then_some(letters))
    });
    both.expect("two dead letters");
    host
}

fn listed(host: &TestHost, query: &str) -> usize {
    let answer = host.get(&format!("{LETTERS}?{query}")).json();
    answer["dead_letters"].as_array().map_or(0, Vec::len)
}

#[test]
fn the_query_finds_letters_and_what_it_does_not_mean_is_refused() {
    let host = with_two_letters();
    assert_eq!(listed(&host, "class=late&cause=reject&revision=1"), 2);
    assert_eq!(listed(&host, "key=a"), 1);
    assert_eq!(listed(&host, "key_base64=%2Fw%3D%3D"), 1);
    assert_eq!(listed(&host, "header=reject%3Dlate&origin_topic=in"), 2);
    assert_eq!(listed(&host, "redriven=only"), 0);
    assert_eq!(listed(&host, "from=in.p.dlq/0/1"), 1);
    let first = host.get(&format!("{LETTERS}?max=1")).json();
    assert_eq!(first["next"], "in.p.dlq/0/1");
    let groups = host.get(&format!("{LETTERS}/groups")).json();
    assert_eq!(
        (&groups["count"], &groups["groups"][0]["count"]),
        (&json!(2), &json!(2))
    );
    let rest = host.get(&format!("{LETTERS}/groups?from=in.p.dlq/0/1"));
    assert_eq!(rest.json()["count"], 1);
    for query in [
        "?from=nowhere",
        "?klass=late",
        "?key=a&key_base64=YQ%3D%3D",
        "?redriven=true",
    ] {
        host.get(&format!("{LETTERS}{query}"))
            .refused(400, "malformed");
    }
}

#[test]
fn work_that_cannot_be_done_is_refused_and_what_is_done_is_on_record() {
    let host = with_two_letters();
    let post =
        |path: &str, body: Value| host.post_json(&format!("{LETTERS}{path}"), body.to_string());
    post("/redrive", json!({})).refused(400, "malformed");
    post("/redrive", json!({"all": true, "filter": {}})).refused(400, "malformed");
    post("/redrive", json!({"filter": {"max": 0}})).refused(400, "malformed");
    post("/redrive", json!({"all": true, "per_second": 0})).refused(400, "malformed");
    post("/dry-run", json!({"all": true, "revision": 9})).refused(404, "unknown-revision");
    post("/in.p.dlq/0/7/edit", json!({"value": "x"})).refused(404, "unknown-dead-letter");
    post("/in.p.dlq/0/0/edit", json!({})).refused(422, "invalid-edit");
    let forged = json!({"headers": {"millrace-origin-offset": "9"}});
    post("/in.p.dlq/0/0/edit", forged).refused(422, "invalid-edit");
    assert_eq!(listed(&host, ""), 2, "nothing was sent");

    let tried = post("/dry-run", json!({"all": true})).json();
    assert_eq!(
        (&tried["letters"], &tried["outcomes"][0]["class"]),
        (&json!(2), &json!("late"))
    );
    let edit = json!({"key": null, "value": "mended", "remove_headers": ["reject"]});
    let path = format!("{LETTERS}/in.p.dlq/0/0/edit");
    let headers = [("Millrace-By", "ada"), ("Content-Type", "application/json")];
    let edited = host.call("POST", &path, &headers, edit.to_string());
    assert_eq!(edited.json()["sent"], 1);
    post("/in.p.dlq/0/0/edit", edit).refused(409, "already-sent");
    assert_eq!(
        post("/redrive", json!({"filter": {"class": "late"}})).json()["sent"],
        1
    );
    let trail = host.get(&format!("{LETTERS}/audit")).json();
    let by = ["edit", "redrive"].map(|action| {
        let entries = trail["entries"].as_array().into_iter().flatten();
        let mut of = entries.filter(|entry| entry["action"] == action);
        of.next().map(|entry| entry["by"].clone())
    });
    assert_eq!(by, [Some(json!("ada")), Some(json!("unknown"))], "{trail}");
}
