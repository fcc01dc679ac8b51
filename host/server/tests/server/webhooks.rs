//! Webhooks of providers, taken in by the component `webhook`. The component `query` answers questions about what became of them.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::routes::{ends, set, text, upload};
use crate::support::{Answer, TestHost, config};

const TOPIC: &str = "whatsapp.incoming";

/// A message of Twilio, and its signature under the token `12345`, computed independently.
const HI: &str = "MessageSid=SM1&From=whatsapp%3A%2B49170&Body=hi";
const HI_SIGNED: &str = "0WdaoDctGO4D21RUZmCaLEYz1jg=";
/// The same message with one more field.
const HI_AGAIN: &str = "MessageSid=SM1&From=whatsapp%3A%2B49170&Body=hi&NumMedia=0";
const HI_AGAIN_SIGNED: &str = "zBdmc+96HkFLhf9tJN/pkzXRV8I=";

/// Two messages of Meta, and their signature under the secret `app`, computed independently.
const TWO: &str = r#"{"entry": [{"changes": [{"value": {"messages": [{"id": "wamid.a", "from": "49170"}, {"id": "wamid.b", "from": "49171"}]}}]}]}"#;
const TWO_SIGNED: &str = "sha256=be20d8b6bd733ef0021db6be08abd2484cf33fdf84d3a9d4c4402ba5fd31d28d";
const NONSENSE_SIGNED: &str =
    "sha256=ce29ae73d35283e3a3f9f5e765fbd972ee2a7a72a777b1f25048edff22075018";

/// A host with the webhook of a provider.
struct Hooks {
    host: TestHost,
    _secrets: TempDir,
}

impl Hooks {
    fn of(settings: Value, secrets: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, value) in secrets {
            std::fs::write(directory.path().join(name), value).expect("a secret");
        }
        let mut config = config();
        config.secrets.directory = Some(directory.path().to_owned());
        let host = TestHost::with(config).with_topic(TOPIC, 2);
        upload(&host, "webhook@1.0.0", guest_artifacts::WEBHOOK);
        let names: Vec<&str> = secrets.iter().map(|(name, _)| *name).collect();
        let spec = json!({
            "module": "webhook@1.0.0",
            "config": settings,
            "grants": {"topics": [TOPIC], "secrets": names},
            "limits": {"call_ms_max": 30_000},
        });
        let answer = set(&host, "/hooks/whatsapp", spec);
        assert_eq!(answer.status, 200, "{}", answer.json());
        Self {
            host,
            _secrets: directory,
        }
    }

    fn twilio() -> Self {
        let settings = json!({"provider": "twilio", "origin": "https://hooks.example.com"});
        Self::of(settings, &[("webhook-secret", "12345")])
    }

    fn send(&self, kind: &str, signature: (&str, &str), body: &str) -> Answer {
        let headers = [("content-type", kind), signature];
        self.host.call("POST", "/hooks/whatsapp", &headers, body)
    }

    fn send_form(&self, body: &str, signature: &str) -> Answer {
        let kind = "application/x-www-form-urlencoded";
        self.send(kind, ("x-twilio-signature", signature), body)
    }

    fn send_json(&self, body: &str, signature: &str) -> Answer {
        self.send("application/json", ("x-hub-signature-256", signature), body)
    }
}

#[test]
fn a_message_of_twilio_is_stored_once_however_often_it_comes() {
    let hooks = Hooks::twilio();
    for (body, signature) in [
        (HI, HI_SIGNED),
        (HI, HI_SIGNED),
        (HI_AGAIN, HI_AGAIN_SIGNED),
    ] {
        let answer = hooks.send_form(body, signature);
        assert_eq!(
            (answer.status, text(&answer).as_str()),
            (200, "<Response></Response>")
        );
        assert_eq!(answer.headers["content-type"], "text/xml");
        assert_eq!(ends(&hooks.host, TOPIC), 1);
    }
}

#[test]
fn what_the_provider_has_not_signed_is_refused() {
    let hooks = Hooks::twilio();
    for (body, signature) in [
        (HI_AGAIN, HI_SIGNED),
        (HI, HI_AGAIN_SIGNED),
        (HI, ""),
        ("", HI_SIGNED),
    ] {
        assert_eq!(hooks.send_form(body, signature).status, 403, "{body}");
    }
    assert_eq!(hooks.host.get("/hooks/whatsapp").status, 405);
    assert_eq!(ends(&hooks.host, TOPIC), 0);
}

#[test]
fn meta_verifies_the_address_and_sends_several_messages_at_once() {
    let secrets = [("webhook-secret", "app"), ("webhook-verify-token", "open")];
    let hooks = Hooks::of(json!({"provider": "meta"}), &secrets);
    let verify = |token: &str| {
        let query = format!("hub.mode=subscribe&hub.verify_token={token}&hub.challenge=42");
        hooks.host.get(&format!("/hooks/whatsapp?{query}"))
    };
    let verified = verify("open");
    assert_eq!((verified.status, text(&verified).as_str()), (200, "42"));
    assert_eq!(verify("shut").status, 403);
    for _ in 0..2 {
        assert_eq!(hooks.send_json(TWO, TWO_SIGNED).status, 200);
        assert_eq!(ends(&hooks.host, TOPIC), 2);
    }
    assert_eq!(hooks.send_json(TWO, NONSENSE_SIGNED).status, 403);
    assert_eq!(hooks.send_json("nonsense", NONSENSE_SIGNED).status, 400);
    assert_eq!(ends(&hooks.host, TOPIC), 2);
}

#[test]
fn a_webhook_without_its_secret_says_that_the_provider_should_try_again() {
    let hooks = Hooks::of(
        json!({"provider": "meta", "secret": "elsewhere"}),
        &[("webhook-secret", "app")],
    );
    // It is not granted, so no waiting helps.
    assert_eq!(hooks.send_json(TWO, TWO_SIGNED).status, 500);
    let spec = json!({
        "module": "webhook@1.0.0",
        "config": {"provider": "meta", "secret": "elsewhere"},
        "grants": {"topics": [TOPIC], "secrets": ["elsewhere"]},
    });
    assert_eq!(set(&hooks.host, "/hooks/whatsapp", spec).status, 200);
    // It is granted, and the host does not have it yet.
    assert_eq!(hooks.send_json(TWO, TWO_SIGNED).status, 503);
    assert_eq!(ends(&hooks.host, TOPIC), 0);
}

/// Asks until the answer is as wanted.
fn until(hooks: &Hooks, question: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut answered = Value::Null;
    for _ in 0..3_000 {
        answered = hooks.host.get(&format!("/ask?{question}")).json();
        if wanted(&answered) {
            return answered;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{question}: {answered}");
}

#[test]
fn what_came_in_is_kept_by_sender_and_can_be_asked_for() {
    let hooks = Hooks::twilio();
    upload(&hooks.host, "query@1.0.0", guest_artifacts::QUERY);
    let spec = json!({
        "topics": [TOPIC],
        "module": "webhook@1.0.0",
        "grants": {"secrets": ["webhook-secret"]},
    });
    let deployed = hooks
        .host
        .call("PUT", "/v1/processors/senders", &[], spec.to_string());
    assert!(deployed.status < 300, "{}", deployed.json());
    let spec = json!({"module": "query@1.0.0", "grants": {"views": ["senders"]}});
    let answer = set(&hooks.host, "/ask", spec);
    assert_eq!(answer.status, 200, "{}", answer.json());

    let key = "processor=senders&key=whatsapp:%2B49170";
    let nothing = hooks.host.get(&format!("/ask?{key}")).json();
    assert_eq!(nothing["values"], json!({"whatsapp:+49170": null}));
    assert_eq!(hooks.send_form(HI, HI_SIGNED).status, 200);
    let found = until(&hooks, key, |found| {
        !found["values"]["whatsapp:+49170"].is_null()
    });
    let value = found["values"]["whatsapp:+49170"]["value"].as_str();
    let value: Value = serde_json::from_str(value.expect("text")).expect("JSON");
    assert_eq!(
        (&value["Body"], &value["MessageSid"]),
        (&json!("hi"), &json!("SM1"))
    );

    // Partition by partition, as `next` says.
    let first = hooks
        .host
        .get("/ask?processor=senders&prefix=whatsapp")
        .json();
    assert_eq!(first["next"], json!({"partition": 1}));
    let second = "/ask?processor=senders&prefix=whatsapp&partition=1";
    let second = hooks.host.get(second).json();
    assert_eq!(second["next"], Value::Null);
    let entries = |page: &Value| page["entries"].as_array().map_or(0, Vec::len);
    assert_eq!(entries(&first) + entries(&second), 1, "{first} {second}");
}

#[test]
fn a_question_about_what_is_not_granted_or_not_there_is_refused() {
    let hooks = Hooks::twilio();
    upload(&hooks.host, "query@1.0.0", guest_artifacts::QUERY);
    let spec = json!({"module": "query@1.0.0", "grants": {"views": ["senders"]}});
    assert_eq!(set(&hooks.host, "/ask", spec).status, 200);
    for (question, status) in [
        ("processor=others&key=a", 403),
        ("processor=senders&key=a", 404),
        ("key=a", 400),
        ("processor=senders&kye=a", 400),
    ] {
        let answer = hooks.host.get(&format!("/ask?{question}"));
        assert_eq!(answer.status, status, "{question}");
        assert!(answer.json()["error"].is_string(), "{}", answer.json());
    }
}
