//! State of processors over HTTP: shown as of a committed offset, written, emptied. What is shown can be written back.

use std::str::FromStr;

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use millrace_broker::StatePlace;
use millrace_broker::state::{
    NEVER, StateChange, StateEntry, StatePage, StateQuery, StateValue, StateWrites,
};
use millrace_model::bounds::STATE_LISTED_BYTES_MAX;
use millrace_model::{Offset, PartitionId, ProcessorName, Timestamp, TopicName};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::answers::BYTES_PER_BYTE;
use super::app::to_the_end;
use super::body::json;
use super::bounds::STATE_BODY_BYTES_MAX;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::messages::{entry, one_of};
use super::query::{InPath, InQuery};

/// Maximum memory of an answer, as entries and as JSON: an entry's share of the bound covers its
/// field names.
pub(super) const STATE_ROOM_BYTES: usize = BYTES_PER_BYTE * STATE_LISTED_BYTES_MAX;

/// Whole numbers up to here are exact as doubles.
const EXACT_MAX: u64 = (1 << 53) - 1;

/// Which entries.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StateParams {
    /// The input topic; optional if the processor reads only one.
    #[param(value_type = Option<String>)]
    topic: Option<TopicName>,
    /// The partition.
    partition: u32,
    /// Only keys with this prefix.
    #[serde(default)]
    prefix: String,
    /// Only keys after this one, to continue.
    after: Option<String>,
    /// Like `after`, for a key that is not text.
    after_base64: Option<String>,
    /// Maximum number of entries.
    #[serde(default = "max_default")]
    #[param(default = 1000)]
    max: usize,
}

fn max_default() -> usize {
    1_000
}

/// Entries by key.
#[derive(Serialize, ToSchema)]
pub(super) struct StateBody {
    /// The state contains exactly the writes of the messages below this offset, except parked ones.
    as_of: Offset,
    /// Changes whenever something is written, and after a restart: answers with the same version belong together.
    version: u64,
    /// Entries of the whole table.
    entries_total: usize,
    /// Approximate bytes of the whole table.
    bytes_total: usize,
    /// Whether there are more: ask for those after the last one.
    has_more: bool,
    #[schema(value_type = Vec<StateEntryBody>)]
    entries: Vec<Shown>,
}

pub(super) struct Shown(pub(super) StateEntry);

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "key", "key_base64", Some(&self.0.key))?;
        let value = Some(self.0.value.as_bytes());
        entry(&mut map, "value", "value_base64", value)?;
        // As a string: most JSON readers treat numbers as doubles, and would round it.
        if let Some(number) = self.0.value.as_number() {
            map.serialize_entry("number", &number.to_string())?;
        }
        match self.0.ends_at {
            NEVER => {}
            Timestamp(ms) if ms > EXACT_MAX => map.serialize_entry("ends_at", &ms.to_string())?,
            at => map.serialize_entry("ends_at", &at)?,
        }
        map.end()
    }
}

impl From<StatePage> for StateBody {
    fn from(page: StatePage) -> Self {
        Self {
            as_of: page.as_of,
            version: page.version,
            entries_total: page.size.entries,
            bytes_total: page.size.bytes,
            has_more: page.has_more,
            entries: page.entries.into_iter().map(Shown).collect(),
        }
    }
}

/// An entry. Its key is text or base64, and so is its value, exactly. To remove a key, omit the value.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StateEntryBody {
    key: Option<String>,
    key_base64: Option<String>,
    /// The value, if it is UTF-8.
    value: Option<String>,
    /// The value, if it is not.
    value_base64: Option<String>,
    /// The number in an eight-byte value (little-endian, signed), as a string such as `"-7"`, which no JSON reader rounds. It may be
    /// given instead of the value, also as a JSON number; next to a value it must agree.
    #[schema(value_type = Option<String>)]
    number: Option<Whole<i64>>,
    /// Milliseconds since the Unix epoch; a string if JSON readers might round it.
    #[schema(value_type = Option<WholeMs>)]
    ends_at: Option<Whole<u64>>,
}

/// A whole number, or a string that contains one.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a whole number that nothing has rounded, best as a text such as \"-7\""
)]
enum Whole<N> {
    Number(N),
    Text(String),
}

/// A whole number, as a number or a string.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes what Shown writes by hand")]
enum WholeMs {
    Number(u64),
    Text(String),
}

impl<N: FromStr> Whole<N> {
    fn understood(self, field: &str) -> Result<N, ApiError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(text) => text.parse().map_err(|_| {
                let message = format!("{field}: {text:?} is not a 64-bit whole number");
                ApiError::malformed(message, "write digits, such as \"-7\"")
            }),
        }
    }
}

impl StateEntryBody {
    fn change(self) -> Result<StateChange, ApiError> {
        let key = one_of("key", self.key.map(Into::into), self.key_base64)?;
        let missing = || ApiError::malformed("an entry has no key", "give key or key_base64");
        let value = one_of("value", self.value.map(Into::into), self.value_base64)?;
        let number = self.number.map(|number| number.understood("number"));
        let number = number.transpose()?.map(StateValue::of_number);
        let value = match (value.map(|value| StateValue::new(&value)), number) {
            (Some(value), Some(number)) if value != number => {
                let message = "value and number do not agree";
                return Err(ApiError::malformed(message, "give one of them"));
            }
            (value, number) => value.or(number),
        };
        let ends_at = self.ends_at.map(|at| at.understood("ends_at"));
        Ok(StateChange {
            key: (&*key.ok_or_else(missing)?).into(),
            value,
            ends_at: ends_at.transpose()?.map_or(NEVER, Timestamp),
        })
    }
}

/// Whether a text is a valid entry; returns its size in the state, or what is wrong with it.
pub(crate) fn check_entry(text: &str) -> Result<usize, String> {
    let entry = json(text.as_bytes()).and_then(StateEntryBody::change);
    let change = entry.map_err(ApiError::into_message)?;
    change.check()?;
    Ok(change.weight())
}

/// What to write.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StateWriteBody {
    /// The input topic; optional if the processor reads only one.
    topic: Option<TopicName>,
    partition: u32,
    /// Whether to empty the state first.
    #[serde(default)]
    reset: bool,
    #[serde(default)]
    entries: Vec<StateEntryBody>,
}

/// What was written.
#[derive(Serialize, ToSchema)]
pub(super) struct StateWrittenBody {
    written: usize,
}

/// A processor's state in a partition, as of its committed progress. An answer has at most 10,000 entries and 4 MiB of them, and at
/// least one entry. State of a deleted processor, or of a topic that it no longer reads, is shown as well.
#[utoipa::path(get, path = "/v1/processors/{name}/state", tag = "processors",
    params(("name" = String, Path,), StateParams), responses(
    (status = 200, body = StateBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "It has state for several topics, or for another one: name one"),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn show(
    app: Called,
    InPath(processor): InPath<ProcessorName>,
    InQuery(params): InQuery<StateParams>,
) -> Result<Response, ApiError> {
    let place = StatePlace {
        processor,
        topic: params.topic,
        partition: PartitionId(params.partition),
    };
    let after = one_of("after", params.after.map(Into::into), params.after_base64)?;
    let query = StateQuery {
        prefix: params.prefix.into_bytes(),
        after: after.map(|after| after.to_vec()),
        entries_max: params.max,
        ..StateQuery::default()
    };
    let room = app.answer_room(STATE_ROOM_BYTES).await?;
    let shown = StateBody::from(app.session.processors().state(&place, query).await?);
    let written = serde_json::to_vec(&shown);
    let written = written.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(room.answer("application/json", written))
}

/// Writes entries into a processor's state, between two of its batches; with `reset` it empties the state first.
#[utoipa::path(post, path = "/v1/processors/{name}/state", tag = "processors",
    params(("name" = String, Path,)), request_body = StateWriteBody, responses(
    (status = 200, body = StateWrittenBody),
    (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody),
    (status = 413, body = ErrorBody, description = "The body is too large: send the entries in several calls"),
    (status = 422, body = ErrorBody, description = "A bound is exceeded, or it has state for several topics: name one"),
    (status = 503, body = ErrorBody, description = "A batch that uses the state did not end in time, or the disk is full; nothing was written"),
))]
pub(super) async fn write(
    app: Called,
    InPath(processor): InPath<ProcessorName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<StateWrittenBody>, ApiError> {
    let taken = app.take_body(&headers, body, STATE_BODY_BYTES_MAX).await?;
    let body: StateWriteBody = json(&taken.bytes)?;
    let place = StatePlace {
        processor,
        topic: body.topic,
        partition: PartitionId(body.partition),
    };
    let changes = body.entries.into_iter().map(StateEntryBody::change);
    let writes = StateWrites {
        resets: body.reset,
        changes: changes.collect::<Result<_, _>>()?,
        adds: None,
    };
    let written = writes.changes.len();
    to_the_end(async move { Ok(app.session.processors().write_state(&place, writes).await?) })
        .await?;
    Ok(Json(StateWrittenBody { written }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// JSON as seen by a reader that treats every number as a double.
    fn rounded(value: Value) -> Value {
        match value {
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => Value::from(number as f64 as u64),
                (_, Some(number)) => Value::from(number as f64 as i64),
                _ => Value::Number(number),
            },
            Value::Array(items) => items.into_iter().map(rounded).collect(),
            Value::Object(fields) => {
                let fields = fields.into_iter();
                let fields = fields.map(|(name, value)| (name, rounded(value)));
                Value::Object(fields.collect())
            }
            other => other,
        }
    }

    fn change(text: &str) -> Result<StateChange, ApiError> {
        json::<StateEntryBody>(text.as_bytes()).and_then(StateEntryBody::change)
    }

    fn any_value() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<i64>().prop_map(|number| number.to_le_bytes().to_vec()),
            (-100..100i64).prop_map(|number| number.to_le_bytes().to_vec()),
            "[ -~\\n\\t]{8}".prop_map(String::into_bytes),
            "\\PC{0,12}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..20),
        ]
    }

    proptest! {
        #[test]
        fn any_entry_that_is_shown_comes_back_as_it_was_also_from_a_reader_of_doubles(
            key in proptest::collection::vec(any::<u8>(), 1..12),
            value in any_value(),
            ends_at in prop_oneof![Just(NEVER.0), any::<u64>(), 0..4_000_000_000_000u64],
        ) {
            let value = StateValue::new(&value);
            let shown = Shown(StateEntry {
                key: key.clone().into(),
                value: value.clone(),
                ends_at: Timestamp(ends_at),
            });
            let text = serde_json::to_string(&shown).expect("JSON");
            let read: Value = serde_json::from_str(&text).expect("JSON");
            for text in [text, rounded(read).to_string()] {
                let change = change(&text).expect("an entry");
                prop_assert_eq!(&*change.key, &key[..]);
                prop_assert_eq!(change.value.as_ref(), Some(&value));
                prop_assert_eq!(change.ends_at, Timestamp(ends_at));
            }
        }
    }

    #[test]
    fn a_number_is_taken_as_it_was_exported_before_and_not_where_it_was_rounded() {
        let number = |text: &str| {
            let entry = format!(r#"{{"key":"k",{text}}}"#);
            change(&entry).map(|change| change.value.and_then(|value| value.as_number()))
        };
        for (text, wanted) in [
            (r#""number":9007199254740993"#, 9_007_199_254_740_993),
            (r#""number":"-9223372036854775808""#, i64::MIN),
            (r#""number":"7","value_base64":"BwAAAAAAAAA=""#, 7),
            (r#""value":"customer""#, i64::from_le_bytes(*b"customer")),
        ] {
            assert_eq!(number(text).expect(text), Some(wanted));
        }
        for wrong in [
            r#""number":9223372036854776000"#,
            r#""number":-9.223372036854776e18"#,
            r#""number":7.0"#,
            r#""number":"seven""#,
            r#""number":"8","value_base64":"BwAAAAAAAAA=""#,
            r#""number":"7","value":"seven""#,
        ] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }
}
