//! The filter for dead letters: as query parameters, and as JSON in requests.

use bytes::Bytes;
use millrace_broker::{
    Cause, DeadLetterFilter, HeaderFilter, MessagePlace, RedriveWhich, Redrives,
};
use millrace_model::{PartitionId, Timestamp, TopicName};
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::super::delays::Moment;
use super::super::error::ApiError;
use super::super::messages::one_of;

/// Selects dead letters: all conditions must hold.
#[derive(Default, Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(in super::super) struct Find {
    /// Only those with this class.
    class: Option<String>,
    /// Only those with this cause: `retry`, `reject`, `trap`, `timeout`, `memory`, `bad-answer`, `host-died` or `given-up`.
    cause: Option<String>,
    /// Only those that failed under this revision.
    revision: Option<u32>,
    /// Only those with this key.
    key: Option<String>,
    /// As `key`, for a key that is not text.
    key_base64: Option<String>,
    /// Only those given up at or after this time: milliseconds since the Unix epoch, or a text such as `2026-11-21T10:00:00Z` or
    /// `-15m`.
    #[param(value_type = Option<u64>)]
    #[schema(value_type = Option<u64>)]
    since: Option<Moment>,
    /// Only those given up before this time, in the same format.
    #[param(value_type = Option<u64>)]
    #[schema(value_type = Option<u64>)]
    until: Option<Moment>,
    /// Only those with this header: `NAME`, or `NAME=VALUE`.
    header: Option<String>,
    /// Only those with this text in the value, the key or the reason.
    text: Option<String>,
    /// Only those that came from this topic.
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    origin_topic: Option<TopicName>,
    /// Only those that came from a partition with this number.
    origin_partition: Option<u32>,
    /// `no`: not redriven; `also`: all; `only`: only redriven ones.
    #[param(inline)]
    redriven: RedrivenWord,
    /// Where to continue: the `next` of an earlier answer.
    #[serde(deserialize_with = "place")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    from: Option<MessagePlace>,
    /// Maximum number.
    pub(super) max: Option<usize>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum RedrivenWord {
    #[default]
    No,
    Also,
    Only,
}

/// A place as text.
pub(super) fn place<'de, D: Deserializer<'de>>(from: D) -> Result<Option<MessagePlace>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(de::Error::custom))
        .transpose()
}

impl Find {
    /// The filter, and where to start.
    pub(super) fn understood(
        self,
        now: Timestamp,
    ) -> Result<(DeadLetterFilter, Option<MessagePlace>), ApiError> {
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        let time = |field, given: Option<Moment>| {
            given
                .map(|moment| moment.understood(field, now))
                .transpose()
        };
        let key = one_of("key", self.key.map(Bytes::from), self.key_base64)?;
        let cause = said(self.cause);
        let causes = Cause::ALL.map(Cause::as_str);
        if let Some(unknown) = cause.as_ref().filter(|c| !causes.contains(&c.as_str())) {
            let message = format!("there is no cause {unknown:?}");
            let hint = format!("use one of {}", causes.join(", "));
            return Err(ApiError::malformed(message, hint));
        }
        let filter = DeadLetterFilter {
            class: said(self.class),
            cause,
            revision: self.revision,
            key,
            since: time("since", self.since)?,
            until: time("until", self.until)?,
            header: said(self.header).map(|header| header_filter(&header)),
            text: said(self.text),
            origin_topic: self.origin_topic,
            origin_partition: self.origin_partition.map(PartitionId),
            redriven: match self.redriven {
                RedrivenWord::No => Redrives::No,
                RedrivenWord::Also => Redrives::Also,
                RedrivenWord::Only => Redrives::Only,
            },
            ..DeadLetterFilter::default()
        };
        Ok((filter, self.from))
    }
}

fn header_filter(text: &str) -> HeaderFilter {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let bytes = |text: &str| Bytes::from(text.to_owned());
    HeaderFilter {
        name: bytes(name),
        value: value.map(bytes),
    }
}

/// The place of a dead letter.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadLetterPlaceBody {
    /// The dead-letter topic.
    #[schema(value_type = String)]
    topic: TopicName,
    partition: u32,
    offset: u64,
}

/// The three ways to select dead letters; also returns the maximum number.
pub(super) fn which(
    all: bool,
    places: Option<Vec<DeadLetterPlaceBody>>,
    filter: Option<Find>,
    now: Timestamp,
) -> Result<(RedriveWhich, Option<usize>), ApiError> {
    let place = |place: DeadLetterPlaceBody| MessagePlace {
        topic: place.topic,
        partition: PartitionId(place.partition),
        offset: millrace_model::Offset(place.offset),
    };
    let find = match (all, places, filter) {
        (false, Some(places), None) => {
            let places = places.into_iter().map(place).collect();
            return Ok((RedriveWhich::Places(places), None));
        }
        (true, None, None) => Find::default(),
        (false, None, Some(find)) => find,
        _ => {
            let message = "the request does not select any dead letters";
            let hint = r#"send {"all":true}, {"dead_letters":[{"topic","partition","offset"}]} or {"filter":{"class":"…"}}"#;
            return Err(ApiError::malformed(message, hint));
        }
    };
    let max = find.max;
    if max == Some(0) {
        let message = "max is 0: nothing would be done";
        return Err(ApiError::malformed(message, "omit it, or use 1 or more"));
    }
    let (filter, from) = find.understood(now)?;
    let filter = Box::new(filter);
    Ok((RedriveWhich::Matching { filter, from }, max))
}
