//! `topic`: create, list, show, change, trim and delete topics.

use millrace_model::{Compression, TopicName};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::table::{cell, facts, items, short, table};
use crate::units::{duration_ms, duration_text, size_bytes, size_text};

/// Manage topics
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Create a topic; creating the same topic again changes nothing
    #[command(
        after_help = "Examples:\n  millrace topic create orders --partitions 4\n  \
        millrace topic create clicks --retention 7d --retention-bytes 10GiB\n  \
        millrace topic create prices --compact\n  \
        millrace topic create quakes --partitions 4 --partitioner region@1.0.0"
    )]
    Create {
        name: TopicName,
        /// Number of partitions; `topic set` can raise it later, never lower it
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        /// When a message is acknowledged: durable (after fdatasync), os (in the page cache), none (today the same as os)
        #[arg(long, default_value = "durable", value_parser = ["durable", "os", "none"])]
        durability: String,
        /// A module that exports `partitioner`, by digest or tag
        #[arg(long, value_name = "MODULE")]
        partitioner: Option<String>,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// List all topics
    List,
    /// Show a topic, its settings, and the first and next offset of each partition
    Show { name: TopicName },
    /// Change a topic while it is in use; settings that are not given stay as they are
    #[command(
        after_help = "Examples:\n  millrace topic set orders --retention 30d\n  \
        millrace topic set orders --retention none --retention-bytes 10GiB\n  \
        millrace topic set prices --compact=false --durability os\n  \
        millrace topic set orders --partitions 8\n\n\
        With more partitions, existing messages stay where they are. Keys are spread over all partitions from then on, so a\n\
        key's messages may be in two of them, with order kept only within each. State of processors does not move."
    )]
    Set {
        name: TopicName,
        /// When messages are acknowledged from now on
        #[arg(long, value_parser = ["durable", "os", "none"])]
        durability: Option<String>,
        /// The new number of partitions: the same as before, or more
        #[arg(long, value_name = "COUNT")]
        partitions: Option<u32>,
        /// Add partitions even though the topic is compacted, or a processor reads it in order or has state for it
        #[arg(long, requires = "partitions")]
        accept_moved_keys: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Remove messages before an offset, permanently
    #[command(
        after_help = "Examples:\n  millrace topic trim orders --before 120000 --partition 2\n  \
        millrace topic trim orders --before end"
    )]
    Trim {
        name: TopicName,
        /// The first offset to keep, or `end` to remove everything
        #[arg(long, value_name = "OFFSET", value_parser = before)]
        before: Value,
        /// Only this partition [default: all]
        #[arg(long)]
        partition: Option<u32>,
    },
    /// Delete a topic and its messages
    #[command(
        after_help = "Refused if a processor uses the topic, if the revision that a rollback would return to does, or if messages in it wait for a \
processor that no longer reads it; the error lists every reason.\n\nExamples:\n  millrace topic delete old\n  millrace topic delete old --accept-loss"
    )]
    Delete {
        name: TopicName,
        /// Delete it even if a rollback would need it, or messages in it wait for a processor that no longer reads it
        #[arg(long)]
        accept_loss: bool,
    },
}

/// The settings that can be changed later.
#[derive(clap::Args)]
pub(super) struct SettingsArgs {
    /// How long messages are kept, such as 7d or 12h; `none` keeps them forever
    #[arg(long, value_name = "DURATION", value_parser = duration_or_none)]
    retention: Option<Value>,
    /// How many bytes a partition keeps, such as 10GiB; `none` for no bound
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    retention_bytes: Option<Value>,
    /// Keep only the latest value of each key
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    compact: Option<bool>,
    /// How long a compacted topic keeps a message without a value (a tombstone), which deletes its key
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    tombstones: Option<Value>,
    /// Size of a segment, the unit that retention removes; `none` for the host's default
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    segment_bytes: Option<Value>,
    /// Age at which a segment ends even if it is not full; `none` for no bound
    #[arg(long, value_name = "DURATION", value_parser = duration_or_none)]
    segment_age: Option<Value>,
    /// How the host compresses the batches that it builds
    #[arg(long, value_parser = Compression::ALL.map(Compression::name))]
    compression: Option<String>,
}

fn duration(text: &str) -> Result<Value, String> {
    duration_ms(text).map(Value::from)
}

fn duration_or_none(text: &str) -> Result<Value, String> {
    match text {
        "none" => Ok(Value::Null),
        text => duration(text).map_err(|wrong| format!("{wrong}, or none")),
    }
}

pub(super) fn size_or_none(text: &str) -> Result<Value, String> {
    match text {
        "none" => Ok(Value::Null),
        text => size_bytes(text)
            .map(Value::from)
            .map_err(|wrong| format!("{wrong}, or none")),
    }
}

fn before(text: &str) -> Result<Value, String> {
    match text.parse::<u64>() {
        Ok(offset) => Ok(offset.into()),
        Err(_) if text == "end" => Ok(text.into()),
        Err(_) => Err("write an offset or end".to_owned()),
    }
}

impl SettingsArgs {
    /// The given settings, under the host's names.
    fn given(self) -> Value {
        let compact = self.compact.map(Value::from);
        let compression = self.compression.map(Value::from);
        let fields = [
            ("retention_ms", self.retention),
            ("retention_bytes", self.retention_bytes),
            ("compact", compact),
            ("tombstone_ms", self.tombstones),
            ("segment_bytes", self.segment_bytes),
            ("segment_ms", self.segment_age),
            ("compression", compression),
        ];
        let given = fields.into_iter();
        let given = given.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(given.collect::<Map<_, _>>())
    }
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    match verb {
        Verb::Create {
            name,
            partitions,
            durability,
            partitioner,
            settings,
        } => {
            let body = json!({
                "name": name, "partitions": partitions, "durability": durability, "partitioner": partitioner,
                "settings": settings.given(),
            });
            let topic = client.send(Method::POST, "/v1/topics", &body)?;
            out.answer(&topic, |_| {
                format!("topic {name} exists; partitions: {partitions}")
            })
        }
        Verb::List => out.answer(&client.get("/v1/topics")?, list),
        Verb::Show { name } => out.answer(&client.get(&path(&name))?, show),
        Verb::Set {
            name,
            durability,
            partitions,
            accept_moved_keys,
            settings,
        } => {
            let mut body = json!({"settings": settings.given()});
            if durability.is_none() && partitions.is_none() && body["settings"] == json!({}) {
                let failure = Failure::usage("there is nothing to change");
                return Err(failure.with_hint("give a setting, such as --retention 7d"));
            }
            if let Some(durability) = durability {
                body["durability"] = durability.into();
            }
            if let Some(partitions) = partitions {
                body["partitions"] = partitions.into();
                body["accept_moved_keys"] = accept_moved_keys.into();
            }
            let topic = client.send(Method::PATCH, &path(&name), &body)?;
            out.answer(&topic, |topic| changed(&name, topic))
        }
        Verb::Trim {
            name,
            before,
            partition,
        } => {
            let mut body = json!({"before": before});
            if let Some(partition) = partition {
                body["partition"] = partition.into();
            }
            let answer = client.send(Method::POST, &format!("{}/trim", path(&name)), &body)?;
            out.answer(&answer, |answer| {
                let row = |at: &Value| vec![cell(&at["partition"]), cell(&at["start"])];
                let rows = items(&answer["starts"]).iter().map(row).collect();
                table(&["PARTITION", "START"], rows, "")
            })
        }
        Verb::Delete { name, accept_loss } => {
            let query = if accept_loss { "?accept_loss=true" } else { "" };
            let answer = client.delete(&format!("{}{query}", path(&name)))?;
            let lost = answer["lost"].clone();
            let gone = match lost.is_null() {
                true => json!({"deleted": name}),
                false => json!({"deleted": name, "lost": lost}),
            };
            out.answer(&gone, |gone| {
                let lost = items(&gone["lost"]).iter();
                let lost = lost.map(|lost| format!("\n  lost with it: {}", cell(lost)));
                format!("topic {name} is deleted{}", lost.collect::<String>())
            })
        }
    }
}

/// The topic after a change, and what adding partitions means.
fn changed(name: &TopicName, topic: &Value) -> String {
    let kept = kept(topic);
    let Value::Object(grown) = &topic["grown"] else {
        return format!("topic {name}; kept: {kept}");
    };
    let along = items(&grown["along"]).iter().map(cell);
    let along = along.collect::<Vec<_>>().join(", ");
    let along = match along.is_empty() {
        true => String::new(),
        false => format!("the same for {along}\n"),
    };
    format!(
        "topic {name} now has {} partitions instead of {}; kept: {kept}\n{along}{}",
        topic["partitions"],
        grown["before"],
        cell(&grown["note"])
    )
}

fn path(name: &TopicName) -> String {
    format!("/v1/topics/{name}")
}

fn list(answer: &Value) -> String {
    let row = |topic: &Value| {
        let partitioner = match &topic["partitioner"] {
            Value::Null => "built-in".to_owned(),
            digest => short(digest),
        };
        let cells = ["name", "partitions", "durability"].map(|field| cell(&topic[field]));
        let rest = [kept(topic), partitioner, cell(&topic["owner"])];
        [cells, rest].concat()
    };
    let rows = items(&answer["topics"]).iter().map(row).collect();
    let headings = [
        "TOPIC",
        "PARTITIONS",
        "DURABILITY",
        "KEPT",
        "PARTITIONER",
        "OWNER",
    ];
    let note = "there are no topics yet; create one with `millrace topic create NAME`";
    table(&headings, rows, note)
}

/// How long a topic's messages are kept, in short.
fn kept(topic: &Value) -> String {
    let settings = &topic["settings"];
    let bounds = [
        settings["retention_ms"].as_u64().map(duration_text),
        settings["retention_bytes"].as_u64().map(size_text),
        (settings["compact"] == true).then(|| "latest of each key".to_owned()),
    ];
    let bounds: Vec<String> = bounds.into_iter().flatten().collect();
    match bounds.is_empty() {
        true => "forever".to_owned(),
        false => bounds.join(", "),
    }
}

fn show(topic: &Value) -> String {
    let fact = |name: &'static str| (name, cell(&topic[name]));
    let mut lines: Vec<(&str, String)> = [
        "name",
        "id",
        "partitions",
        "durability",
        "partitioner",
        "owner",
    ]
    .map(fact)
    .to_vec();
    lines.extend(settings(&topic["settings"]));
    let facts = facts(&lines);
    let row = |ends: &Value| {
        let cells = ["partition", "start", "end", "messages"].map(|field| cell(&ends[field]));
        let damaged = items(&ends["damaged"]).iter();
        let damaged = damaged.map(|range| format!("{}..{}", range["from"], range["to"]));
        let damaged = damaged.collect::<Vec<_>>().join(", ");
        [cells.as_slice(), &[damaged]].concat()
    };
    let rows = items(&topic["ends"]).iter().map(row).collect();
    let headings = ["PARTITION", "START", "END", "MESSAGES", "DAMAGED"];
    let ends = table(&headings, rows, "");
    format!("{facts}\n\n{ends}")
}

fn settings(settings: &Value) -> [(&'static str, String); 7] {
    let duration = |name: &str| settings[name].as_u64().map(duration_text);
    let size = |name: &str| settings[name].as_u64().map(size_text);
    let or_none = |bound: Option<String>| bound.unwrap_or_else(|| "none".to_owned());
    [
        ("retention", or_none(duration("retention_ms"))),
        ("retention bytes", or_none(size("retention_bytes"))),
        ("compact", cell(&settings["compact"])),
        ("tombstones", or_none(duration("tombstone_ms"))),
        ("segment bytes", or_none(size("segment_bytes"))),
        ("segment age", or_none(duration("segment_ms"))),
        ("compression", cell(&settings["compression"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_messages_are_kept_is_said_in_few_words() {
        let topic = |settings: Value| json!({"settings": settings});
        assert_eq!(kept(&topic(json!({}))), "forever");
        let bounded =
            json!({"retention_ms": 604_800_000, "retention_bytes": 1 << 30, "compact": true});
        assert_eq!(kept(&topic(bounded)), "7d, 1GiB, latest of each key");
    }

    #[test]
    fn none_takes_a_bound_away_and_what_is_not_given_is_not_sent() {
        assert_eq!(duration_or_none("none"), Ok(Value::Null));
        assert_eq!(size_or_none("64KiB"), Ok(json!(65_536)));
        assert!(size_or_none("many").is_err_and(|wrong| wrong.ends_with("or none")));
        assert_eq!(before("end"), Ok(json!("end")));
        assert!(before("start").is_err());
    }
}
