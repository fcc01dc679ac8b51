//! Deploying over HTTP: omitted settings stay as they were, and the answer lists the differences.

use serde_json::{Value, json};

use crate::cli::{ask, out};
use crate::processing::with_uppercase;
use crate::support::TestHost;

const SHOUT: &str = "/v1/processors/shout";

fn patch(host: &TestHost, query: &str, changes: &Value) -> crate::support::Answer {
    let path = format!("{SHOUT}{query}");
    host.call("PATCH", &path, &[], changes.to_string())
}

fn spec(host: &TestHost) -> Value {
    let shown = host.get(SHOUT).json();
    let number = &shown["current"];
    let revisions = shown["revisions"].as_array().expect("revisions");
    let current = revisions.iter().find(|r| r["number"] == *number);
    current.expect("the current one")["spec"].clone()
}

/// The specification of a revision on trial is the same before and after, so the note is all there is to see.
#[test]
fn another_trial_of_the_same_revision_is_a_change_and_the_answer_says_which() {
    let host = with_uppercase(TestHost::start());
    let changes = json!({"retry": {"attempts_max": 7}});
    let begun = patch(&host, "?canary=10", &changes).json();
    assert!(
        begun["note"].is_null() && begun["differs"] != json!([]),
        "{begun}"
    );
    let same = patch(&host, "?canary=10", &changes).json();
    assert!(
        same["note"].is_null() && same["differs"] == json!([]),
        "{same}"
    );
    let share = patch(&host, "?canary=30", &changes).json();
    assert_eq!(share["note"], "revision 2 now gets 30 % of the keys");
    let shadow = patch(&host, "?shadow=true", &changes).json();
    assert_eq!(shadow["note"], "revision 2 is now a shadow");
    assert_eq!(shadow["shadow"]["revision"], 2);
}

#[test]
fn what_a_change_does_not_name_stays_and_the_answer_says_what_is_different() {
    let host = with_uppercase(TestHost::start()).with_topic("more", 1);
    let told = json!({
        "retry": {"attempts_max": 7, "delay_first_ms": 30}, "order": "partition", "grants": {"topics": ["more"]}, "hops_max": 4,
        "auto_rollback": true, "limits": {"call_ms_max": 900}, "batch": {"linger_ms": 3}, "breaker": {"enabled": false},
        "dead_letters": {"max": 5},
    });
    let first = patch(&host, "", &told);
    assert_eq!(first.status, 200, "{}", first.json());
    assert_eq!(first.json()["current"], 2);
    let before = spec(&host);
    for (field, value) in told.as_object().expect("fields") {
        match value.as_object() {
            None => assert_eq!(before[field], *value),
            Some(group) => group
                .iter()
                .for_each(|(name, value)| assert_eq!(before[field][name], *value)),
        }
    }
    let answer = patch(&host, "", &json!({"retry": {"attempts_max": 8}})).json();
    let differs = json!([{"field": "retry.attempts_max", "before": 7, "after": 8}]);
    assert_eq!(
        (&answer["current"], &answer["differs"]),
        (&json!(3), &differs)
    );
    let mut expected = before;
    expected["retry"]["attempts_max"] = json!(8);
    assert_eq!(spec(&host), expected);

    let answer = patch(&host, "", &json!({"module": "upper@1.0.0"})).json();
    assert_eq!(
        (&answer["current"], &answer["differs"]),
        (&json!(3), &json!([]))
    );

    let unsaid = json!({"retry": null, "output": null, "order": null, "hops_max": null, "breaker": {"enabled": null}, "grants": {"topics": ["out"]}});
    let answer = patch(&host, "", &unsaid).json();
    let fields = answer["differs"].as_array().expect("differences").iter();
    let fields: Vec<&str> = fields.filter_map(|d| d["field"].as_str()).collect();
    let changed = [
        "breaker.enabled",
        "grants.topics",
        "hops_max",
        "order",
        "output",
        "retry.attempts_max",
        "retry.delay_first_ms",
    ];
    let mut sorted = fields.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, changed);
    let now = spec(&host);
    assert_eq!(
        (&now["output"], &now["order"]),
        (&Value::Null, &json!("key"))
    );
    assert_eq!(now["limits"], expected["limits"]);

    // A full specification replaces all settings.
    let whole = json!({"topics": ["in"], "module": "upper@1.0.0", "output": "out"});
    let answer = host.call("PUT", SHOUT, &[], whole.to_string()).json();
    assert!(
        answer["differs"].to_string().contains("limits.call_ms_max"),
        "{answer}"
    );
    assert_eq!(spec(&host)["limits"]["call_ms_max"], 1_000);
    let back = host.post_json("/v1/processors/shout/rollback", "").json();
    assert!(
        back["differs"].to_string().contains("limits.call_ms_max"),
        "{back}"
    );
}

#[test]
fn a_trial_and_a_state_reset_are_changes_of_the_current_revision_too() {
    let host = with_uppercase(TestHost::start());
    patch(&host, "", &json!({"retry": {"attempts_max": 7}}));
    let trial = patch(&host, "?canary=10", &json!({"batch": {"messages_max": 9}})).json();
    assert_eq!(trial["canary"]["revision"], 3, "{trial}");
    let differs = json!([{"field": "batch.messages_max", "before": 1000, "after": 9}]);
    assert_eq!(trial["differs"], differs);
    let promoted = host.post_json("/v1/processors/shout/promote", "");
    assert_eq!(promoted.status, 200);
    let now = spec(&host);
    assert_eq!(
        (&now["retry"]["attempts_max"], &now["batch"]["messages_max"]),
        (&json!(7), &json!(9))
    );
    let reset = patch(&host, "?reset_state=true", &json!({})).json();
    assert_eq!(
        (&reset["current"], &reset["differs"]),
        (&json!(4), &json!([]))
    );
    let emptied = "revision 4 has the same specification, and begins with empty state";
    assert_eq!(reset["note"], emptied);
    assert_eq!(spec(&host), now);
}

#[test]
fn of_deployers_at_once_nobody_loses_what_another_one_said() {
    let host = with_uppercase(TestHost::start());
    let fields = [
        json!({"retry": {"attempts_max": 77}}),
        json!({"retry": {"delay_first_ms": 78}}),
        json!({"batch": {"messages_max": 79}}),
        json!({"batch": {"linger_ms": 8}}),
        json!({"limits": {"call_ms_max": 811}}),
        json!({"dead_letters": {"max": 82}}),
        json!({"auto_rollback": true}),
        json!({"hops_max": 83}),
    ];
    std::thread::scope(|scope| {
        for changes in &fields {
            scope.spawn(|| assert_eq!(patch(&host, "", changes).status, 200));
        }
    });
    let now = spec(&host);
    assert_eq!(now["retry"]["attempts_max"], 77);
    assert_eq!(now["retry"]["delay_first_ms"], 78);
    assert_eq!(now["batch"]["messages_max"], 79);
    assert_eq!(now["batch"]["linger_ms"], 8);
    assert_eq!(now["limits"]["call_ms_max"], 811);
    assert_eq!(now["dead_letters"]["max"], 82);
    assert_eq!(
        (&now["auto_rollback"], &now["hops_max"]),
        (&json!(true), &json!(83))
    );
}

#[test]
fn a_deployment_on_another_revision_than_expected_is_refused() {
    let host = with_uppercase(TestHost::start());
    let changes = json!({"hops_max": 3});
    let told = patch(&host, "?expected_revision=0", &changes).refused(409, "other-revision");
    assert!(
        told.contains("on revision 1 of") && told.contains("not on 0"),
        "{told}"
    );
    assert_eq!(
        patch(&host, "?expected_revision=1", &changes).json()["current"],
        2
    );
    patch(&host, "?expected_revision=1", &json!({"hops_max": 4})).refused(409, "other-revision");
    let whole = json!({"topics": ["in"], "module": "upper@1.0.0"}).to_string();
    host.call(
        "PUT",
        "/v1/processors/shout?expected_revision=1",
        &[],
        whole.clone(),
    )
    .refused(409, "other-revision");
    let new = host.call("PUT", "/v1/processors/new?expected_revision=0", &[], whole);
    assert_eq!(new.status, 201, "{}", new.json());
    assert_eq!(spec(&host)["hops_max"], 3);
}

#[test]
fn a_change_that_is_a_slip_or_makes_no_whole_is_refused_and_says_so() {
    let host = with_uppercase(TestHost::start());
    let slip = |changes: Value| patch(&host, "", &changes).refused(400, "malformed");
    for (changes, told) in [
        (json!({"modul": "x"}), "did you mean `module`?"),
        (
            json!({"retry": {"attempts": null}}),
            "did you mean `attempts_max`?",
        ),
        (
            json!({"retry": {"attempts_max": "many"}}),
            "retry.attempts_max",
        ),
        (json!({"topics": null}), "topics has no default"),
    ] {
        let said = slip(changes);
        assert!(said.contains(told) && !said.contains("line 1"), "{said}");
    }
    patch(&host, "", &json!({"module": "no@1"})).refused(404, "unknown-module");
    let nobody = host.call(
        "PATCH",
        "/v1/processors/nobody",
        &[],
        r#"{"module":"upper@1.0.0"}"#,
    );
    let told = nobody.refused(422, "invalid-spec");
    assert!(
        told.contains("topics") && told.contains("processor nobody does not exist"),
        "{told}"
    );
    let made = json!({"module": "upper@1.0.0", "topics": ["in"]});
    let made = host.call("PATCH", "/v1/processors/nobody", &[], made.to_string());
    assert_eq!((made.status, &made.json()["differs"]), (201, &json!([])));
}

fn cli(host: &TestHost, arguments: &[&str]) -> String {
    out(&ask(host, arguments))
}

#[test]
fn a_redeploy_by_flags_keeps_what_the_last_one_was_told_and_says_what_changed() {
    let host = with_uppercase(TestHost::start());
    let deploy = |more: &[&str]| cli(&host, &[&["processor", "deploy", "shout"], more].concat());
    let told = deploy(&[
        "--attempts-max",
        "7",
        "--retry-first",
        "50ms",
        "--retry-max",
        "9s",
        "--linger",
        "4ms",
        "--batch-messages-max",
        "11",
        "--batch-bytes-max",
        "64KiB",
        "--memory-max",
        "32MiB",
        "--call-max",
        "2s",
        "--order",
        "none",
        "--hops-max",
        "6",
        "--auto-rollback",
        "--set",
        "breaker.failures_min=9",
    ]);
    assert!(
        told.contains("revision 2") && told.contains("retry.attempts_max"),
        "{told}"
    );
    let before = spec(&host);
    assert_eq!(
        before["retry"],
        json!({"attempts_max": 7, "delay_first_ms": 50, "delay_max_ms": 9_000})
    );
    assert_eq!(
        before["batch"],
        json!({"messages_max": 11, "bytes_max": 65_536, "linger_ms": 4})
    );
    assert_eq!(before["limits"]["memory_bytes_max"], 32 << 20);
    assert_eq!(
        (&before["breaker"]["failures_min"], &before["auto_rollback"]),
        (&json!(9), &json!(true))
    );

    let same = deploy(&["--module", "upper@1.0.0"]);
    assert!(
        same.contains("revision 2") && same.contains("nothing has changed"),
        "{same}"
    );
    let told = deploy(&[
        "--module",
        "upper@1.0.0",
        "--topic",
        "in",
        "--output",
        "out",
        "--attempts-max",
        "8",
    ]);
    assert_eq!(
        told,
        "processor shout: revision 3 takes the next batch\n  retry.attempts_max  7 -> 8\n"
    );
    let mut expected = before;
    expected["retry"]["attempts_max"] = json!(8);
    assert_eq!(spec(&host), expected);

    let told = deploy(&[
        "--unset",
        "retry",
        "--unset",
        "hops_max",
        "--auto-rollback=false",
    ]);
    assert!(
        told.contains("retry.attempts_max") && told.contains("-> 10"),
        "{told}"
    );
    let now = spec(&host);
    assert_eq!(
        (&now["auto_rollback"], &now["hops_max"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(now["batch"], expected["batch"]);

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("spec.toml");
    std::fs::write(
        &file,
        "topics = [\"in\"]\nmodule = \"upper@1.0.0\"\noutput = \"out\"\n",
    )
    .expect("written");
    let told = deploy(&["--spec", file.to_str().expect("a path")]);
    assert!(
        told.contains("batch.linger_ms") && told.contains("4 -> 0"),
        "{told}"
    );
    std::fs::write(
        &file,
        "topics = [\"in\"]\nmodule = \"upper@1.0.0\"\n[retry]\nattempts = 3\n",
    )
    .expect("written");
    let slip = ask(
        &host,
        &[
            "processor",
            "deploy",
            "shout",
            "--spec",
            file.to_str().expect("a path"),
        ],
    );
    let slip_told = String::from_utf8_lossy(&slip.stderr).into_owned();
    assert_eq!(slip.status.code(), Some(4), "{slip_told}");
    assert!(
        slip_told.contains("spec.toml: retry") && slip_told.contains("did you mean `attempts_max`"),
        "{slip_told}"
    );
    assert!(
        !slip_told.contains("JSON") && !slip_told.contains("line 1"),
        "{slip_told}"
    );
    let back = cli(&host, &["processor", "rollback", "shout"]);
    assert!(back.contains("0 -> 4"), "{back}");
}

#[test]
fn what_is_said_of_a_paused_processor_says_that_it_is_paused() {
    let host = with_uppercase(TestHost::start());
    let say = |arguments: &[&str]| {
        let told = cli(&host, &[&["processor"], arguments].concat());
        assert!(
            told.contains("processor shout is paused"),
            "{arguments:?}: {told}"
        );
        assert!(
            told.contains("millrace processor resume shout"),
            "{arguments:?}: {told}"
        );
    };
    cli(&host, &["processor", "pause", "shout"]);
    say(&["deploy", "shout", "--hops-max", "3"]);
    say(&["deploy", "shout", "--hops-max", "3"]);
    say(&["deploy", "shout", "--hops-max", "4", "--canary", "10"]);
    say(&["canary", "shout", "--percent", "50"]);
    say(&["promote", "shout"]);
    say(&["rollback", "shout"]);
    say(&["deploy", "shout", "--hops-max", "9", "--shadow"]);
    cli(&host, &["processor", "resume", "shout"]);
    let told = cli(&host, &["processor", "deploy", "shout", "--hops-max", "5"]);
    assert!(!told.contains("paused"), "{told}");
}

#[test]
fn a_schedule_is_run_and_a_key_found_from_the_command_line() {
    let host = TestHost::start()
        .with_topic("ticks", 3)
        .with_topic("counts", 1);
    let bytes = guest_artifacts::COUNTER.to_vec();
    let uploaded = host.call("POST", "/v1/modules?tag=counter@1", &[], bytes);
    assert_eq!(uploaded.status, 201, "{}", uploaded.json());
    cli(
        &host,
        &[
            "processor",
            "deploy",
            "count",
            "--module",
            "counter@1",
            "--topic",
            "ticks",
            "--output",
            "counts",
        ],
    );
    cli(
        &host,
        &[
            "schedule",
            "create",
            "tick",
            "--topic",
            "ticks",
            "--cron",
            "@Annually",
            "--key",
            "k",
            "--value",
            "x",
        ],
    );
    let before = host.get("/v1/schedules/tick").json();
    for _ in 0..2 {
        let told = cli(&host, &["schedule", "run", "tick"]);
        assert!(
            told.contains("created a message in topic ticks") && told.contains("is still"),
            "{told}"
        );
    }
    let after = host.get("/v1/schedules/tick").json();
    assert_eq!(
        (&after["next"], &after["made"]),
        (&before["next"], &json!(2))
    );
    assert!(cli(&host, &["schedule", "show", "tick"]).contains("run by hand"));
    let mut found = String::new();
    for _ in 0..3_000 {
        let asked = ask(
            &host,
            &["processor", "state", "show", "count", "--key", "k"],
        );
        found = String::from_utf8_lossy(&asked.stdout).into_owned();
        if found
            .lines()
            .any(|line| line.split_whitespace().nth(3) == Some("2"))
        {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(found.contains("ticks"), "{found}");
    let totals = cli(&host, &["processor", "state", "show", "count"]);
    assert_eq!(
        totals
            .lines()
            .filter(|line| line.trim_start().starts_with("ticks"))
            .count(),
        3,
        "{totals}"
    );
    let absent = ask(
        &host,
        &["processor", "state", "show", "count", "--key", "absent"],
    );
    assert_eq!(absent.status.code(), Some(3), "{absent:?}");
    let totals = host.get("/v1/processors/count/state/totals").json();
    assert_eq!(totals["entries"], 1, "{totals}");
}
