//! Messages as JSON, in and out. Text where the bytes are UTF-8, base64 where they are not; a stored value is never parsed.
//!
//! A header name may repeat, as in Kafka: then its values stand in a list. A header name that is not UTF-8 is shown with
//! replacement characters.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use millrace_broker::{Fetched, NewMessage};
use millrace_model::{Header, Message, PartitionId, Timestamp};
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::delays::{Moment, due};
use super::error::ApiError;

/// A message to produce.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageIn<'a> {
    key: Option<String>,
    /// The key, for bytes that are not UTF-8.
    key_base64: Option<String>,
    /// A string gives its UTF-8 bytes, other JSON its compact text, null or nothing a message without value.
    #[serde(borrow)]
    #[schema(value_type = Option<serde_json::Value>)]
    value: Option<&'a RawValue>,
    /// The value, for bytes that are not UTF-8.
    value_base64: Option<String>,
    /// Name to value, or to a list of values.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    headers: Option<Pairs>,
    /// Name to base64 of the value.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    headers_base64: Option<Pairs>,
    /// Milliseconds since the Unix epoch; the time of arrival without.
    timestamp: Option<u64>,
    /// The topic's partitioner chooses without.
    partition: Option<u32>,
    /// When it is delivered: milliseconds since the Unix epoch, or a text such as `2026-11-21T10:00:00Z`; at once without, or if
    /// that has passed. Its timestamp is this, unless it has one.
    #[schema(value_type = Option<String>)]
    deliver_at: Option<Moment>,
    /// Instead of `deliver_at`: so long after its arrival.
    delay_ms: Option<u64>,
}

/// A JSON object as pairs in the order written.
struct Pairs(Vec<(String, HeaderIn)>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a string, null, or a list of these")]
enum HeaderIn {
    One(Option<String>),
    Many(Vec<Option<String>>),
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of header names and values")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs, M::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

impl MessageIn<'_> {
    /// The message that it means.
    pub(super) fn understood(self, now: Timestamp) -> Result<NewMessage, ApiError> {
        let mut headers = headers(self.headers, |text| Ok(text.into()))?;
        headers.extend(self::headers(self.headers_base64, |text| {
            binary("headers_base64", &text)
        })?);
        let deliver_at = due(self.deliver_at.as_ref(), self.delay_ms, now)?;
        // Without any the broker gives it that of its delivery.
        let without = if deliver_at.is_none() {
            now
        } else {
            Timestamp(0)
        };
        let timestamp = self.timestamp.map_or(Ok(without), stored_timestamp)?;
        let key = self.key.map(Bytes::from);
        let value = self.value.map(value_bytes).transpose()?;
        Ok(NewMessage {
            deliver_at,
            partition: self.partition.map(PartitionId),
            message: Message {
                key: one_of("key", key, self.key_base64)?,
                value: one_of("value", value, self.value_base64)?,
                headers,
                timestamp,
            },
        })
    }
}

/// What is stored is signed, as in Kafka; a larger number would come back as another one.
fn stored_timestamp(ms: u64) -> Result<Timestamp, ApiError> {
    if i64::try_from(ms).is_ok() {
        return Ok(Timestamp(ms));
    }
    let message = format!("timestamp {ms} is more than {}", i64::MAX);
    let hint = "give milliseconds since the Unix epoch, or leave it out";
    Err(ApiError::malformed(message, hint))
}

fn headers(
    pairs: Option<Pairs>,
    bytes_of: impl Fn(String) -> Result<Bytes, ApiError>,
) -> Result<Vec<Header>, ApiError> {
    let mut headers = Vec::new();
    for (name, value) in pairs.map_or_else(Vec::new, |pairs| pairs.0) {
        let values = match value {
            HeaderIn::One(value) => vec![value],
            HeaderIn::Many(values) => values,
        };
        let name = Bytes::from(name);
        for value in values {
            headers.push(Header {
                name: name.clone(),
                value: value.map(&bytes_of).transpose()?,
            });
        }
    }
    Ok(headers)
}

pub(super) fn one_of(
    field: &str,
    text: Option<Bytes>,
    encoded: Option<String>,
) -> Result<Option<Bytes>, ApiError> {
    match (text, encoded) {
        (Some(_), Some(_)) => {
            let message = format!("{field} and {field}_base64 are both given");
            Err(ApiError::malformed(message, "give one of them"))
        }
        (text, None) => Ok(text),
        (None, Some(encoded)) => binary(&format!("{field}_base64"), &encoded).map(Some),
    }
}

fn binary(field: &str, encoded: &str) -> Result<Bytes, ApiError> {
    let decoded = STANDARD.decode(encoded).map(Bytes::from);
    decoded.map_err(|error| {
        let message = format!("{field} is not base64: {error}");
        ApiError::malformed(message, "use the standard alphabet with padding")
    })
}

pub(super) fn value_bytes(raw: &RawValue) -> Result<Bytes, ApiError> {
    let text = raw.get();
    if !text.starts_with('"') {
        return Ok(compact(text));
    }
    let string = serde_json::from_str::<String>(text).map(Bytes::from);
    string.map_err(|error| ApiError::malformed(format!("value: {error}"), "mend the string"))
}

/// JSON without the white space between its tokens; numbers and the order of fields stay as they were written.
fn compact(json: &str) -> Bytes {
    let mut out = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        let space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        if in_string || !space {
            out.push(byte);
        }
        in_string ^= byte == b'"' && !escaped;
        escaped = in_string && byte == b'\\' && !escaped;
    }
    out.into()
}

/// A message as it is shown.
pub(super) struct MessageOut<'a> {
    /// Where it stands; nothing for a dead letter, which says so itself.
    pub(super) place: Option<(PartitionId, &'a Fetched)>,
    pub(super) message: &'a Message,
}

impl<'a> MessageOut<'a> {
    pub(super) fn of(partition: PartitionId, fetched: &'a Fetched) -> Self {
        Self {
            place: Some((partition, fetched)),
            message: &fetched.message,
        }
    }
}

impl Serialize for MessageOut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some((partition, fetched)) = self.place {
            map.serialize_entry("partition", &partition)?;
            map.serialize_entry("offset", &fetched.offset)?;
        }
        map.serialize_entry("timestamp", &self.message.timestamp)?;
        entry(&mut map, "key", "key_base64", self.message.key.as_deref())?;
        entry(
            &mut map,
            "value",
            "value_base64",
            self.message.value.as_deref(),
        )?;
        let (text, binary): (Vec<_>, Vec<_>) = self
            .message
            .headers
            .iter()
            .partition(|header| is_text(header));
        map.serialize_entry("headers", &Headers { headers: text })?;
        if !binary.is_empty() {
            map.serialize_entry("headers_base64", &Headers { headers: binary })?;
        }
        map.end()
    }
}

pub(super) fn entry<M: SerializeMap>(
    map: &mut M,
    name: &'static str,
    name_base64: &'static str,
    bytes: Option<&[u8]>,
) -> Result<(), M::Error> {
    match bytes.map(|bytes| str::from_utf8(bytes).map_err(|_| bytes)) {
        None => map.serialize_entry(name, &()),
        Some(Ok(text)) => map.serialize_entry(name, text),
        Some(Err(bytes)) => map.serialize_entry(name_base64, &STANDARD.encode(bytes)),
    }
}

fn is_text(header: &Header) -> bool {
    let value = header.value.as_ref();
    value.is_none_or(|value| str::from_utf8(value).is_ok())
}

struct Headers<'a> {
    headers: Vec<&'a Header>,
}

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, header) in self.headers.iter().enumerate() {
            let same = |other: &&&Header| other.name == header.name;
            if self.headers[..at]
                .iter()
                .any(|other| other.name == header.name)
            {
                continue;
            }
            let name = String::from_utf8_lossy(&header.name);
            let values: Vec<_> = self.headers.iter().filter(same).map(|h| shown(h)).collect();
            match values.as_slice() {
                [value] => map.serialize_entry(&name, value)?,
                values => map.serialize_entry(&name, values)?,
            }
        }
        map.end()
    }
}

fn shown(header: &Header) -> Option<String> {
    let text = |value: &Bytes| match str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => STANDARD.encode(value),
    };
    header.value.as_ref().map(text)
}

/// How [`MessageOut`] looks, for the OpenAPI document.
#[derive(ToSchema)]
#[schema(as = Message)]
#[allow(dead_code, reason = "describes what MessageOut writes by hand")]
pub(super) struct MessageSchema {
    partition: u32,
    offset: u64,
    /// Milliseconds since the Unix epoch.
    timestamp: u64,
    /// If it is UTF-8, or null if there is none.
    key: Option<String>,
    key_base64: Option<String>,
    /// If it is UTF-8 (never parsed as JSON), or null if there is none.
    value: Option<String>,
    value_base64: Option<String>,
    headers: std::collections::HashMap<String, String>,
    headers_base64: Option<std::collections::HashMap<String, String>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn understood(text: &str) -> Message {
        let message: MessageIn<'_> = super::super::body::json(text.as_bytes()).expect("JSON");
        message.understood(Timestamp(7)).expect("a message").message
    }

    fn shown(message: &Message) -> serde_json::Value {
        let out = MessageOut {
            place: None,
            message,
        };
        serde_json::to_value(out).expect("JSON")
    }

    #[test]
    fn a_string_gives_its_bytes_and_other_json_its_compact_text() {
        assert_eq!(
            understood(r#"{"value":"a\"b é"}"#).value.as_deref(),
            Some("a\"b é".as_bytes())
        );
        let text = "{\"value\": { \"b\" : [1.50e3 , null],\n \"a\":\" x \\\" y\\\\\" , \"c\": 12345678901234567890123 } }";
        let compact = r#"{"b":[1.50e3,null],"a":" x \" y\\","c":12345678901234567890123}"#;
        assert_eq!(understood(text).value.as_deref(), Some(compact.as_bytes()));
        assert_eq!(understood(r#"{"value":null}"#).value, None);
        assert_eq!(understood("{}").timestamp, Timestamp(7));
    }

    #[test]
    fn bytes_that_are_not_text_go_in_and_out_as_base64() {
        let message = understood(
            r#"{"key_base64":"/w==","value_base64":"AP8=","headers":{"a":"1","n":null},"headers_base64":{"b":"/w=="}}"#,
        );
        assert_eq!(message.key.as_deref(), Some(&[0xff][..]));
        assert_eq!(
            shown(&message),
            json!({
                "timestamp": 7, "key_base64": "/w==", "value_base64": "AP8=",
                "headers": {"a": "1", "n": null}, "headers_base64": {"b": "/w=="},
            })
        );
    }

    #[test]
    fn a_header_that_repeats_is_a_list_in_and_out() {
        let message = understood(r#"{"key":"k","headers":{"z":"0","a":["1","2"]}}"#);
        assert_eq!(message.headers.len(), 3);
        assert_eq!(message.headers[0].name, "z");
        assert_eq!(
            shown(&message)["headers"],
            json!({"z": "0", "a": ["1", "2"]})
        );
    }

    #[test]
    fn text_and_base64_at_once_are_refused() {
        let message: MessageIn<'_> =
            super::super::body::json(br#"{"key":"a","key_base64":"YQ=="}"#).expect("JSON");
        assert!(message.understood(Timestamp(0)).is_err());
        let message: MessageIn<'_> =
            super::super::body::json(br#"{"value_base64":"%"}"#).expect("JSON");
        assert!(message.understood(Timestamp(0)).is_err());
    }
}
