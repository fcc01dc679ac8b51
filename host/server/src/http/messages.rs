//! Messages as JSON, in and out. Text if the bytes are UTF-8, otherwise base64; a stored value is never parsed.
//!
//! Headers are an object from names to values, which is how people and programs look them up. An object cannot represent everything:
//! most JSON readers keep no order, a name may repeat (its values are then a list), and bytes that are not text are in a separate
//! field. So wherever something could be lost, `header_list` has the exact headers in order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use millrace_broker::{Fetched, NewMessage};
use millrace_model::{Header, Message, PartitionId, Timestamp};
use serde::de::{IgnoredAny, MapAccess, Visitor};
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
    /// A string is stored as its UTF-8 bytes, other JSON as its compact text; null, or an omitted value next to a key, is a message
    /// without a value.
    #[serde(borrow, default, deserialize_with = "said")]
    #[schema(value_type = Option<serde_json::Value>)]
    value: Option<&'a RawValue>,
    /// The value, for bytes that are not UTF-8.
    value_base64: Option<String>,
    /// Name to value, or to a list of values.
    #[schema(value_type = Option<std::collections::HashMap<String, HeaderValue>>)]
    headers: Option<Pairs>,
    /// Name to base64 of the value, or to a list of such.
    #[schema(value_type = Option<std::collections::HashMap<String, HeaderValue>>)]
    headers_base64: Option<Pairs>,
    /// All headers exactly, in order: pairs of name and value; bytes that are not text are `{"base64": "…"}`. If the fields above are
    /// also given, they must agree.
    #[schema(value_type = Option<Vec<Vec<Option<HeaderPart>>>>)]
    header_list: Option<Vec<ListedIn>>,
    /// Milliseconds since the Unix epoch; the time of arrival if omitted.
    timestamp: Option<u64>,
    /// The topic's partitioner chooses if omitted.
    partition: Option<u32>,
    /// The time of delivery: milliseconds since the Unix epoch, or a text such as `2026-11-21T10:00:00Z`; at once if omitted or in the
    /// past. It is also the timestamp, unless one is given.
    #[schema(value_type = Option<String>)]
    deliver_at: Option<Moment>,
    /// Instead of `deliver_at`: the delay after its arrival.
    delay_ms: Option<u64>,
    /// The original offset. Accepted and ignored, so that a message may be produced as it was shown.
    #[serde(rename = "offset")]
    #[schema(value_type = Option<u64>)]
    _offset: Option<IgnoredAny>,
}

/// A header as a pair: its name and its value.
pub(super) type ListedIn = (HeaderPart, Option<HeaderPart>);

/// A header's name or value: text, or bytes that are not.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(
    untagged,
    expecting = "a pair of a name and a value, each a text or {\"base64\": \"…\"}"
)]
pub(super) enum HeaderPart {
    Text(String),
    Bytes { base64: String },
}

impl HeaderPart {
    fn of(bytes: &Bytes) -> Self {
        match str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes {
                base64: STANDARD.encode(bytes),
            },
        }
    }

    fn bytes(self) -> Result<Bytes, ApiError> {
        match self {
            Self::Text(text) => Ok(text.into()),
            Self::Bytes { base64 } => binary("header_list", &base64),
        }
    }
}

/// A header's values, for the OpenAPI document.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes what Grouped writes by hand")]
pub(super) enum HeaderValue {
    One(Option<String>),
    Many(Vec<Option<String>>),
}

/// A field that is present, even if it is null.
pub(super) fn said<'de: 'a, 'a, D: Deserializer<'de>>(
    field: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(field).map(Some)
}

/// A JSON object as pairs in the order written.
pub(super) struct Pairs(Vec<(String, HeaderIn)>);

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
    /// The message that it describes.
    pub(super) fn understood(self, now: Timestamp) -> Result<NewMessage, ApiError> {
        if self.is_empty() {
            let message = "the message is empty: it has neither a value nor a key nor headers";
            let hint = r#"add a value; {"value": null} is a message without one"#;
            return Err(ApiError::malformed(message, hint));
        }
        let headers = headers_of(self.headers, self.headers_base64, self.header_list)?;
        let deliver_at = due(self.deliver_at.as_ref(), self.delay_ms, now)?;
        // Without one, the broker uses the time of delivery.
        let without = if deliver_at.is_none() {
            now
        } else {
            Timestamp(0)
        };
        let timestamp = self.timestamp.map_or(Ok(without), stored_timestamp)?;
        let key = self.key.map(Bytes::from);
        let value = value_bytes(self.value)?;
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

impl MessageIn<'_> {
    /// Whether all fields of a message are absent.
    fn is_empty(&self) -> bool {
        let value = self.value.is_some() || self.value_base64.is_some();
        let key = self.key.is_some() || self.key_base64.is_some();
        let some = |pairs: &Option<Pairs>| pairs.as_ref().is_some_and(|pairs| !pairs.0.is_empty());
        let listed = self
            .header_list
            .as_ref()
            .is_some_and(|list| !list.is_empty());
        !value && !key && !some(&self.headers) && !some(&self.headers_base64) && !listed
    }
}

/// Parses a line with a message, as produce does: the message, and the partition that it names. Otherwise what is wrong, and what to
/// do. Times of delivery are refused: whoever asks delivers at once.
pub(crate) fn message_of(
    line: &[u8],
    now: Timestamp,
) -> Result<(Message, Option<PartitionId>), (String, String)> {
    let message = super::body::json::<MessageIn<'_>>(line);
    let understood = message.and_then(|message| message.understood(now));
    let understood = understood.map_err(ApiError::into_parts)?;
    match understood.deliver_at {
        None => Ok((understood.message, understood.partition)),
        Some(_) => {
            let message = "deliver_at and delay_ms have no meaning here".to_owned();
            Err((message, "leave them out".to_owned()))
        }
    }
}

/// Stored values are signed, as in Kafka; a larger number would be read back as another one.
fn stored_timestamp(ms: u64) -> Result<Timestamp, ApiError> {
    if i64::try_from(ms).is_ok() {
        return Ok(Timestamp(ms));
    }
    let message = format!("timestamp {ms} is more than {}", i64::MAX);
    let hint = "use milliseconds since the Unix epoch, or omit it";
    Err(ApiError::malformed(message, hint))
}

/// The headers, from the two ways to give them.
pub(super) fn headers_of(
    text: Option<Pairs>,
    encoded: Option<Pairs>,
    list: Option<Vec<ListedIn>>,
) -> Result<Vec<Header>, ApiError> {
    let is_said = text.is_some() || encoded.is_some();
    let mut grouped = headers(text, |text| Ok(text.into()))?;
    grouped.extend(headers(encoded, |text| binary("headers_base64", &text))?);
    let Some(list) = list else {
        return Ok(grouped);
    };
    let header = |(name, value): ListedIn| {
        let value = value.map(HeaderPart::bytes).transpose()?;
        let name = name.bytes()?;
        Ok::<_, ApiError>(Header { name, value })
    };
    let list = list
        .into_iter()
        .map(header)
        .collect::<Result<Vec<_>, _>>()?;
    match is_said && by_name(&grouped) != by_name(&list) {
        true => {
            let message = "headers and header_list do not agree";
            Err(ApiError::malformed(message, "give one of them"))
        }
        false => Ok(list),
    }
}

/// The values of each name, in order, as in an object.
fn by_name(headers: &[Header]) -> BTreeMap<(bool, Cow<'_, str>), Vec<Option<&Bytes>>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for header in headers {
        let name = (is_text(header), String::from_utf8_lossy(&header.name));
        found.entry(name).or_default().push(header.value.as_ref());
    }
    found
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
            let message = format!("both {field} and {field}_base64 are given");
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

/// The bytes of a JSON value; none if it is null.
pub(super) fn value_bytes(raw: Option<&RawValue>) -> Result<Option<Bytes>, ApiError> {
    let text = match raw.map(RawValue::get) {
        None | Some("null") => return Ok(None),
        Some(text) if text.starts_with('"') => text,
        Some(text) => return Ok(Some(compact(text))),
    };
    let string = serde_json::from_str::<String>(text).map(|string| Some(string.into()));
    string.map_err(|error| ApiError::malformed(format!("value: {error}"), "correct the string"))
}

/// JSON without the white space between its tokens; numbers and the order of fields stay as written.
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

/// A message for an answer.
pub(super) struct MessageOut<'a> {
    /// Its place; absent for a dead letter, which has its own fields for it.
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
        show_headers(&mut map, &self.message.headers)?;
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

/// Headers as an object, and as a list where that has more information.
pub(super) fn show_headers<M: SerializeMap>(map: &mut M, all: &[Header]) -> Result<(), M::Error> {
    let (text, binary): (Vec<_>, Vec<_>) = all.iter().partition(|header| is_text(header));
    map.serialize_entry("headers", &Headers { headers: text })?;
    if !binary.is_empty() {
        map.serialize_entry("headers_base64", &Headers { headers: binary })?;
    }
    match is_all_said(all) {
        true => Ok(()),
        false => map.serialize_entry("header_list", &Listed(all)),
    }
}

/// Whether an object represents all headers for every reader: they have one name, and are of one kind.
fn is_all_said(headers: &[Header]) -> bool {
    let Some(first) = headers.first() else {
        return true;
    };
    let same = |other: &Header| other.name == first.name && is_text(other) == is_text(first);
    str::from_utf8(&first.name).is_ok() && headers.iter().all(same)
}

struct Listed<'a>(&'a [Header]);

impl Serialize for Listed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|header| {
            let value = header.value.as_ref().map(HeaderPart::of);
            (HeaderPart::of(&header.name), value)
        }))
    }
}

struct Headers<'a> {
    headers: Vec<&'a Header>,
}

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, header) in self.headers.iter().enumerate() {
            let name = String::from_utf8_lossy(&header.name);
            let same = |other: &&&Header| String::from_utf8_lossy(&other.name) == name;
            if self.headers[..at].iter().any(|other| same(&other)) {
                continue;
            }
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

/// A message in an answer.
#[derive(ToSchema)]
#[schema(as = Message)]
#[allow(dead_code, reason = "describes what MessageOut writes by hand")]
pub(super) struct MessageSchema {
    /// Absent for a message without a place: a delayed one, or one in a dead letter, which has its own fields.
    partition: Option<u32>,
    offset: Option<u64>,
    /// Milliseconds since the Unix epoch.
    timestamp: u64,
    /// The key if it is UTF-8; null if there is none.
    key: Option<String>,
    key_base64: Option<String>,
    /// The value if it is UTF-8 (never parsed as JSON); null if there is none.
    value: Option<String>,
    value_base64: Option<String>,
    /// From name to value, or to a list of values if the name repeats.
    headers: std::collections::HashMap<String, HeaderValue>,
    /// Like `headers`, for values that are not UTF-8.
    headers_base64: Option<std::collections::HashMap<String, HeaderValue>>,
    /// All headers exactly, in order, as pairs of name and value; bytes that are not text are `{"base64": "…"}`. Present whenever the
    /// fields above are not exact: with more than one name, or with a name that is not UTF-8.
    header_list: Option<Vec<Vec<Option<HeaderPart>>>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
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
        assert_eq!(understood(r#"{"value":null}"#).timestamp, Timestamp(7));
        assert_eq!(understood(r#"{"key":"k"}"#).value, None);
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
                "header_list": [["a", "1"], ["n", null], ["b", {"base64": "/w=="}]],
            })
        );
    }

    #[test]
    fn headers_are_shown_in_their_order_and_exactly_where_an_object_cannot_say_all() {
        let header = |name: &[u8], value: Option<&[u8]>| Header {
            name: Bytes::copy_from_slice(name),
            value: value.map(Bytes::copy_from_slice),
        };
        let list = |headers: Vec<Header>| {
            let message = Message {
                headers,
                ..Message::default()
            };
            shown(&message)["header_list"].clone()
        };
        assert_eq!(list(vec![header(b"a", Some(b"1"))]), json!(null));
        let twice = [Some(&b"1"[..]), None].map(|value| header(b"a", value));
        assert_eq!(list(twice.to_vec()), json!(null));
        let mixed = vec![
            header(b"z", Some(b"1")),
            header(b"a", Some(b"\xff")),
            header(b"z", None),
            header(b"\xfe", Some(b"2")),
        ];
        assert_eq!(
            list(mixed),
            json!([["z", "1"], ["a", {"base64": "/w=="}], ["z", null], [{"base64": "/g=="}, "2"]])
        );
        let order = Message {
            headers: ["b", "c", "a"]
                .map(|name| header(name.as_bytes(), None))
                .to_vec(),
            ..Message::default()
        };
        let out = MessageOut {
            place: None,
            message: &order,
        };
        let text = serde_json::to_string(&out).expect("JSON");
        assert!(
            text.contains(r#""headers":{"b":null,"c":null,"a":null}"#),
            "{text}"
        );
    }

    #[test]
    fn headers_that_are_said_in_two_ways_have_to_be_the_same() {
        let read = |text: &str| {
            let message = super::super::body::json::<MessageIn<'_>>(text.as_bytes());
            message.and_then(|message| message.understood(Timestamp(7)))
        };
        let list = r#""header_list":[["b","1"],["a",{"base64":"/w=="}],["b",null]]"#;
        let same = r#""headers":{"b":["1",null]},"headers_base64":{"a":"/w=="}"#;
        for text in [format!("{{{list}}}"), format!("{{{same},{list}}}")] {
            assert_eq!(read(&text).expect("a message").message.headers.len(), 3);
        }
        for other in [r#""headers":{}"#, r#""headers":{"b":"1"}"#] {
            assert!(read(&format!("{{{other},{list}}}")).is_err(), "{other}");
        }
        for wrong in [
            r#"[["a"]]"#,
            r#"[["a","b","c"]]"#,
            r#"[[1,"b"]]"#,
            r#"[["a",{"base64":"%"}]]"#,
        ] {
            assert!(
                read(&format!(r#"{{"header_list":{wrong}}}"#)).is_err(),
                "{wrong}"
            );
        }
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop_oneof![
            "[a-c]{0,2}".prop_map(Bytes::from),
            "\\PC{0,8}".prop_map(Bytes::from),
            proptest::collection::vec(any::<u8>(), 0..8).prop_map(Bytes::from),
        ]
    }

    proptest! {
        #[test]
        fn any_message_that_is_shown_may_be_produced_and_is_the_same(
            key in proptest::option::of(any_bytes()),
            value in proptest::option::of(any_bytes()),
            headers in proptest::collection::vec((any_bytes(), proptest::option::of(any_bytes())), 0..5),
            timestamp in 0..i64::MAX as u64,
        ) {
            let header = |(name, value)| Header { name, value };
            let message = Message {
                key,
                value,
                headers: headers.into_iter().map(header).collect(),
                timestamp: Timestamp(timestamp),
            };
            let fetched = Fetched { offset: millrace_model::Offset(7), message: message.clone() };
            let text = serde_json::to_string(&MessageOut::of(PartitionId(3), &fetched)).expect("JSON");
            prop_assert_eq!(&understood(&text), &message);
            // Nor does a reader that sorts what an object says change it.
            let sorted: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).expect("JSON");
            let sorted = serde_json::to_string(&sorted).expect("JSON");
            prop_assert_eq!(&understood(&sorted), &message);
        }
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
    fn an_object_that_says_nothing_of_a_message_is_none() {
        for nothing in [
            "{}",
            r#"{"key":null}"#,
            r#"{"partition":0,"timestamp":7,"headers":{}}"#,
        ] {
            let message: MessageIn<'_> =
                super::super::body::json(nothing.as_bytes()).expect("JSON");
            let error = message.understood(Timestamp(7)).expect_err(nothing);
            assert!(error.into_message().contains("is empty"), "{nothing}");
        }
        for twice in [r#"{"value":1,"value":2}"#, r#"{"key":"a","key":"a"}"#] {
            let message = super::super::body::json::<MessageIn<'_>>(twice.as_bytes());
            assert!(message.is_err(), "which one would be a guess: {twice}");
        }
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
