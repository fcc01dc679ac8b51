//! The messages of a provider's request.

use requests::Received;
use requests::encoding::form;
use serde_json::{Map, Value};

/// A message or a report about one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The provider's id: the same for every repeat.
    pub(crate) id: String,
    /// `message`, or `status` for a report about one of ours.
    pub(crate) kind: &'static str,
    /// Who it is from, or for a report who it is about.
    pub(crate) sender: String,
    /// All that the provider says about it, as JSON.
    pub(crate) value: String,
}

/// Twilio sends one message as a form.
pub(crate) fn of_twilio(received: &Received) -> Result<Vec<Taken>, String> {
    let fields: Map<String, Value> = match received.is_form() {
        true => {
            let fields = form(&received.body).into_iter();
            fields.map(|(name, value)| (name, value.into())).collect()
        }
        false => serde_json::from_slice(&received.body)
            .map_err(|error| format!("the body is neither a form nor a JSON object: {error}"))?,
    };
    let field = |name: &str| fields.get(name).and_then(Value::as_str);
    let id = field("MessageSid").or_else(|| field("SmsSid"));
    let id = id
        .filter(|id| !id.is_empty())
        .ok_or("there is no MessageSid")?;
    let status = field("MessageStatus");
    let (id, kind, sender) = match status {
        Some(status) => (format!("{id}:{status}"), "status", field("To")),
        None => (id.to_owned(), "message", field("From")),
    };
    let sender = sender.unwrap_or_default().to_owned();
    let value = Value::Object(fields).to_string();
    Ok(vec![Taken {
        id,
        kind,
        sender,
        value,
    }])
}

/// Meta sends any number of messages and reports as JSON.
pub(crate) fn of_meta(received: &Received) -> Result<Vec<Taken>, String> {
    let body: Value = serde_json::from_slice(&received.body)
        .map_err(|error| format!("the body is not JSON: {error}"))?;
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let mut taken = Vec::new();
    let entries = list(&body, "entry");
    let changes = entries.iter().flat_map(|entry| list(entry, "changes"));
    for change in changes {
        let value = &change["value"];
        let kinds = [
            ("messages", "message", "from"),
            ("statuses", "status", "recipient_id"),
        ];
        for (name, kind, sender) in kinds {
            for item in list(value, name) {
                let mut id = text(&item, "id");
                if id.is_empty() {
                    return Err(format!("one of the {name} has no id"));
                }
                if kind == "status" {
                    id = format!("{id}:{}", text(&item, "status"));
                }
                let mut said = Map::new();
                said.insert("metadata".to_owned(), value["metadata"].clone());
                said.insert(kind.to_owned(), item.clone());
                taken.push(Taken {
                    id,
                    kind,
                    sender: text(&item, sender),
                    value: Value::Object(said).to_string(),
                });
            }
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(content_type: &str, body: &str) -> Received {
        Received {
            target: "/hooks".to_owned(),
            headers: vec![("content-type".to_owned(), content_type.as_bytes().to_vec())],
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_form_of_twilio_is_one_message_and_a_report_has_an_id_of_its_own() {
        let form = "application/x-www-form-urlencoded; charset=utf-8";
        let message = received(form, "MessageSid=SM1&From=whatsapp%3A%2B49170&Body=hi");
        let taken = of_twilio(&message).expect("a message");
        assert_eq!(
            taken,
            [Taken {
                id: "SM1".to_owned(),
                kind: "message",
                sender: "whatsapp:+49170".to_owned(),
                value: r#"{"Body":"hi","From":"whatsapp:+49170","MessageSid":"SM1"}"#.to_owned(),
            }]
        );
        let report = received(
            form,
            "MessageSid=SM1&MessageStatus=read&To=whatsapp%3A%2B49170",
        );
        let taken = of_twilio(&report).expect("a report");
        assert_eq!(
            (taken[0].id.as_str(), taken[0].kind),
            ("SM1:read", "status")
        );
        assert_eq!(taken[0].sender, "whatsapp:+49170");
        for wrong in [
            received(form, "From=x"),
            received("application/json", "[1]"),
        ] {
            assert!(of_twilio(&wrong).is_err());
        }
    }

    #[test]
    fn a_body_of_meta_may_have_several_messages_and_reports_or_none() {
        let body = r#"{"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [{"field": "messages", "value": {
            "metadata": {"phone_number_id": "7"},
            "messages": [{"id": "wamid.a", "from": "49170", "text": {"body": "hi"}}, {"id": "wamid.b", "from": "49171"}],
            "statuses": [{"id": "wamid.c", "status": "read", "recipient_id": "49172"}]}}]}]}"#;
        let taken = of_meta(&received("application/json", body)).expect("messages");
        let seen: Vec<_> = taken
            .iter()
            .map(|taken| (taken.id.as_str(), taken.kind, taken.sender.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("wamid.a", "message", "49170"),
                ("wamid.b", "message", "49171"),
                ("wamid.c:read", "status", "49172"),
            ]
        );
        assert_eq!(
            taken[1].value,
            r#"{"message":{"from":"49171","id":"wamid.b"},"metadata":{"phone_number_id":"7"}}"#
        );
        assert_eq!(of_meta(&received("", "{}")), Ok(vec![]));
        assert!(of_meta(&received("", "nonsense")).is_err());
        let nameless = r#"{"entry": [{"changes": [{"value": {"messages": [{}]}}]}]}"#;
        assert!(of_meta(&received("", nameless)).is_err());
    }
}
