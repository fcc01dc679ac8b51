//! Selects the dead letters that a command applies to.

use clap::builder::PossibleValuesParser;
use millrace_broker::{Cause, MessagePlace};
use serde_json::{Map, Value, json};

use super::super::client::escaped;
use crate::units::time;

/// The names of the filter arguments.
pub(super) const NARROWING: [&str; 10] = [
    "class",
    "cause",
    "failed_revision",
    "key",
    "since",
    "until",
    "header",
    "text",
    "origin",
    "origin_partition",
];

/// Which dead letters: those that match all given filters
#[derive(clap::Args)]
pub(in super::super) struct Find {
    /// Only those with this class
    #[arg(long)]
    class: Option<String>,
    /// Only those with this cause: retry, reject, trap, timeout, memory, bad-answer, host-died or given-up
    #[arg(long, value_parser = PossibleValuesParser::new(Cause::ALL.map(Cause::as_str)))]
    cause: Option<String>,
    /// Only those that failed under this revision
    #[arg(long, value_name = "NUMBER")]
    failed_revision: Option<u32>,
    /// Only those with this key
    #[arg(long)]
    key: Option<String>,
    /// Only those given up at or after this time: 2026-11-21T10:00:00Z, 2026-11-21, milliseconds since the Unix epoch, or 2h or -2h
    /// (ago)
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    since: Option<u64>,
    /// Only those given up before this time, in the same format
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    until: Option<u64>,
    /// Only those with this header: NAME, or NAME=VALUE
    #[arg(long)]
    header: Option<String>,
    /// Only those with this text in the value, the key or the reason
    #[arg(long)]
    text: Option<String>,
    /// Only those that came from this topic
    #[arg(long, value_name = "TOPIC")]
    origin: Option<String>,
    /// Only those that came from a partition with this number
    #[arg(long, value_name = "NUMBER")]
    origin_partition: Option<u32>,
    /// Continue here: the position that an earlier answer printed
    #[arg(long, value_name = "PLACE")]
    from: Option<MessagePlace>,
}

impl Find {
    /// Whether any filter is given.
    pub(super) fn is_said(&self) -> bool {
        self.fields().keys().any(|field| field != "from")
    }

    /// The filters as JSON fields.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let fields = [
            ("class", json!(self.class)),
            ("cause", json!(self.cause)),
            ("revision", json!(self.failed_revision)),
            ("key", json!(self.key)),
            ("since", json!(self.since)),
            ("until", json!(self.until)),
            ("header", json!(self.header)),
            ("text", json!(self.text)),
            ("origin_topic", json!(self.origin)),
            ("origin_partition", json!(self.origin_partition)),
            ("from", json!(self.from)),
        ];
        let said = fields.into_iter().filter(|(_, value)| !value.is_null());
        said.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Fields as a query.
pub(super) fn query(fields: &Map<String, Value>) -> String {
    let pair = |(name, value): (&String, &Value)| match value {
        Value::String(text) => format!("{name}={}", escaped(text)),
        other => format!("{name}={other}"),
    };
    fields.iter().map(pair).collect::<Vec<_>>().join("&")
}
