//! Compares what happened with what was expected: only the fields that an expectation names.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_broker::state::StateValue;
use serde_json::{Map, Value};

/// Fields of an expected result.
const FIELDS: [&str; 7] = [
    "outcome",
    "class",
    "reason",
    "after_ms",
    "outputs",
    "partition",
    "decision",
];
/// Fields of an expected answer to a request.
const ANSWER_FIELDS: [&str; 7] = [
    "status",
    "headers",
    "body",
    "body_base64",
    "sent",
    "outcome",
    "reason",
];
/// Fields of an expected output or sent message.
const OUTPUT_FIELDS: [&str; 9] = [
    "topic",
    "partition",
    "key",
    "key_base64",
    "value",
    "value_base64",
    "headers",
    "timestamp",
    "deliver_at",
];

/// The differences of one message's result, as sentences.
pub(super) fn differences(expected: &Map<String, Value>, got: &Map<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    for (field, want) in expected {
        match field.as_str() {
            "outputs" => {
                let got = got.get("outputs").unwrap_or(&Value::Null);
                outputs("output", want, got, &mut found);
            }
            known if FIELDS.contains(&known) => {
                differs(
                    field,
                    want,
                    got.get(field).unwrap_or(&Value::Null),
                    &mut found,
                );
            }
            unknown => found.push(unknown_field(unknown, &FIELDS)),
        }
    }
    found
}

/// The differences of the answer to a request, as sentences. Of its headers, only those that are named are compared.
pub(super) fn answer_differences(
    expected: &Map<String, Value>,
    got: &Map<String, Value>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (field, want) in expected {
        let got = got.get(field).unwrap_or(&Value::Null);
        match (field.as_str(), want) {
            ("sent", want) => outputs("sent message", want, got, &mut found),
            ("headers", Value::Object(want)) => {
                for (name, want) in want {
                    let what = format!("header {name}");
                    differs(&what, want, &got[name.to_ascii_lowercase()], &mut found);
                }
            }
            ("body", want) if is_alike("value", want, got) => {}
            (known, want) if ANSWER_FIELDS.contains(&known) => {
                differs(field, want, got, &mut found);
            }
            (unknown, _) => found.push(unknown_field(unknown, &ANSWER_FIELDS)),
        }
    }
    found
}

fn unknown_field(field: &str, known: &[&str]) -> String {
    format!(
        "the expectation has a field {field:?}, which does not exist; use {}",
        known.join(", ")
    )
}

fn differs(what: &str, want: &Value, got: &Value, found: &mut Vec<String>) {
    if want != got {
        found.push(format!("{what} is {got}, expected {want}"));
    }
}

/// Compares lists of outputs or of sent messages; `one` is the word for one of them.
fn outputs(one: &str, want: &Value, got: &Value, found: &mut Vec<String>) {
    let none = Vec::new();
    let (Some(want), got) = (want.as_array(), got.as_array().unwrap_or(&none)) else {
        found.push(format!("the expected {one}s are not a list"));
        return;
    };
    if want.len() != got.len() {
        found.push(format!(
            "there are {} {one}s, expected {}",
            got.len(),
            want.len()
        ));
    }
    for (index, (want, got)) in want.iter().zip(got).enumerate() {
        let Some(want) = want.as_object() else {
            found.push(format!("expected {one} {} is not an object", index + 1));
            continue;
        };
        for (field, want) in want {
            let what = format!("{field} of {one} {}", index + 1);
            if !OUTPUT_FIELDS.contains(&field.as_str()) {
                found.push(unknown_field(field, &OUTPUT_FIELDS));
            } else if !is_alike(field, want, &got[field]) {
                found.push(format!("{what} is {}, expected {want}", got[field]));
            }
        }
    }
}

/// A value that is not a text is compared as JSON; no headers are an empty object.
fn is_alike(field: &str, want: &Value, got: &Value) -> bool {
    match (field, want) {
        ("value", Value::Object(_) | Value::Array(_) | Value::Number(_) | Value::Bool(_)) => {
            let got = got
                .as_str()
                .and_then(|text| serde_json::from_str::<Value>(text).ok());
            got.as_ref() == Some(want)
        }
        ("headers", Value::Object(want)) if want.is_empty() => {
            got.as_object().is_none_or(Map::is_empty)
        }
        _ => want == got,
    }
}

/// The differences of the state at the end.
pub(super) fn state_differences(
    expected: &Map<String, Value>,
    got: &BTreeMap<Vec<u8>, StateValue>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (key, want) in expected {
        let value = got.get(key.as_bytes());
        let is_right = match (want, value) {
            (Value::Null, None) => true,
            (Value::Number(want), Some(value)) => value.as_number() == want.as_i64(),
            (Value::String(want), Some(value)) => value.as_bytes() == want.as_bytes(),
            (Value::Object(want), Some(value)) => {
                let encoded = want.get("base64").and_then(Value::as_str);
                encoded == Some(STANDARD.encode(value.as_bytes()).as_str())
            }
            _ => false,
        };
        if !is_right {
            let got = value.map_or(Value::Null, state_value);
            found.push(format!("state {key:?} is {got}, expected {want}"));
        }
    }
    found
}

/// A value of the state for people and programs: eight bytes that are no text are a number.
pub(super) fn state_value(value: &StateValue) -> Value {
    let bytes = value.as_bytes();
    let text = str::from_utf8(bytes).ok();
    let text = text.filter(|text| !text.chars().any(char::is_control));
    match (value.as_number(), text) {
        (_, Some(text)) => Value::from(text),
        (Some(number), None) => Value::from(number),
        (None, None) => serde_json::json!({ "base64": STANDARD.encode(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(expected: Value, got: Value) -> Vec<String> {
        let of = |value: Value| value.as_object().expect("an object").clone();
        differences(&of(expected), &of(got))
    }

    #[test]
    fn only_what_is_expected_is_compared() {
        let got = json!({"outcome": "emit", "outputs": [
            {"key": "1", "value": "{\"b\": 2, \"a\": [1]}", "headers": {"h": "x"}, "topic": "t"},
        ]});
        for fits in [
            json!({}),
            json!({"outcome": "emit"}),
            json!({"outputs": [{"value": {"a": [1], "b": 2}}]}),
            json!({"outputs": [{"key": "1", "topic": "t", "headers": {"h": "x"}}]}),
        ] {
            assert_eq!(found(fits, got.clone()), [""; 0]);
        }
        for (differs, says) in [
            (
                json!({"outcome": "ack"}),
                "outcome is \"emit\", expected \"ack\"",
            ),
            (json!({"outputs": []}), "1 outputs, expected 0"),
            (
                json!({"outputs": [{"key": "2"}]}),
                "key of output 1 is \"1\", expected \"2\"",
            ),
            (
                json!({"outputs": [{"value": {"a": [1]}}]}),
                "value of output 1",
            ),
            (json!({"outputs": [{"headers": {}}]}), "headers of output 1"),
            (json!({"outcomes": "emit"}), "does not exist"),
        ] {
            let told = found(differs, got.clone());
            assert!(told.len() == 1 && told[0].contains(says), "{told:?}");
        }
    }

    #[test]
    fn expected_outputs_of_a_message_without_outputs_are_a_difference() {
        let expected = json!({"outputs": [{"key": "1"}]});
        let told = found(expected, json!({"outcome": "ack"}));
        assert_eq!(told, ["there are 0 outputs, expected 1"]);
        assert_eq!(
            found(json!({"outputs": []}), json!({"outcome": "ack"})),
            [""; 0]
        );
    }

    #[test]
    fn of_an_answer_the_named_headers_are_compared_and_json_as_json() {
        let of = |value: Value| value.as_object().expect("an object").clone();
        let got = of(json!({
            "status": 202, "headers": {"content-type": "application/json", "x-id": ["1", "2"]},
            "body": "{\"b\": 2, \"a\": 1}", "sent": [{"topic": "names", "key": "1", "value": "Ada"}],
        }));
        for fits in [
            json!({"status": 202, "headers": {"Content-Type": "application/json"}}),
            json!({"body": {"a": 1, "b": 2}, "sent": [{"value": "Ada"}]}),
            json!({"headers": {"x-id": ["1", "2"], "allow": null}}),
        ] {
            assert_eq!(answer_differences(&of(fits), &got), [""; 0]);
        }
        for (differs, says) in [
            (json!({"status": 200}), "status is 202, expected 200"),
            (json!({"headers": {"allow": "GET"}}), "header allow is null"),
            (json!({"body": {"a": 1}}), "body is"),
            (json!({"sent": []}), "there are 1 sent messages, expected 0"),
            (
                json!({"sent": [{"topic": "n"}]}),
                "topic of sent message 1 is \"names\"",
            ),
            (json!({"outputs": []}), "does not exist"),
        ] {
            let told = answer_differences(&of(differs), &got);
            assert!(told.len() == 1 && told[0].contains(says), "{told:?}");
        }
    }

    #[test]
    fn state_is_compared_by_the_kind_of_the_expected_value() {
        let state = BTreeMap::from([
            (b"n".to_vec(), StateValue::of_number(3)),
            (b"t".to_vec(), StateValue::new(b"text")),
        ]);
        let of = |value: Value| value.as_object().expect("an object").clone();
        let fits = of(json!({"n": 3, "t": "text", "gone": null}));
        assert_eq!(state_differences(&fits, &state), [""; 0]);
        let differs = of(json!({"n": 4, "t": null, "gone": 1}));
        assert_eq!(state_differences(&differs, &state).len(), 3);
    }
}
