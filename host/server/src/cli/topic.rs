//! `topic`: make, list, show, change, trim and delete topics.

use millrace_model::{Compression, TopicName};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::table::{cell, facts, items, short, table};
use crate::units::{duration_ms, duration_text, size_bytes, size_text};

/// What to do with topics
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Make a topic; making the same one twice is making it once
    #[command(
        after_help = "Examples:\n  millrace topic create orders --partitions 4\n  \
        millrace topic create clicks --retention 7d --retention-bytes 10GiB\n  \
        millrace topic create prices --compact\n  \
        millrace topic create quakes --partitions 4 --partitioner region@1.0.0"
    )]
    Create {
        name: TopicName,
        /// How many partitions; `topic set` gives it more later, never fewer
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        /// When messages are acknowledged: after fdatasync, in the page cache, or in memory
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
    /// Show a topic, its settings, and where its partitions begin and end
    Show { name: TopicName },
    /// Change a topic while it is used; what is not named stays as it is
    #[command(
        after_help = "Examples:\n  millrace topic set orders --retention 30d\n  \
        millrace topic set orders --retention none --retention-bytes 10GiB\n  \
        millrace topic set prices --compact=false --durability os\n  \
        millrace topic set orders --partitions 8\n\n\
        With more partitions, messages that are there stay where they are. Keys are spread over all partitions from then on, so a\n\
        key's messages may be in two of them, in order within each only. State of processors does not move."
    )]
    Set {
        name: TopicName,
        /// When messages are acknowledged from now on
        #[arg(long, value_parser = ["durable", "os", "none"])]
        durability: Option<String>,
        /// How many partitions it has from now on: as many as before, or more
        #[arg(long, value_name = "COUNT")]
        partitions: Option<u32>,
        /// Give it more although it is compacted, or a processor reads it in order or has state in it
        #[arg(long, requires = "partitions")]
        accept_moved_keys: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Remove messages before an offset, for good
    #[command(
        after_help = "Examples:\n  millrace topic trim orders --before 120000 --partition 2\n  \
        millrace topic trim orders --before end"
    )]
    Trim {
        name: TopicName,
        /// The first offset that stays, or `end` to remove all that is there
        #[arg(long, value_name = "OFFSET", value_parser = before)]
        before: Value,
        /// Only this partition; all of them without
        #[arg(long)]
        partition: Option<u32>,
    },
    /// Delete a topic and its messages
    #[command(
        after_help = "Refused where a processor uses it, where the revision that a rollback leads to does, and where messages in it wait for a \
processor that does not read it; the answer names them all.\n\nExamples:\n  millrace topic delete old\n  millrace topic delete old --accept-loss"
    )]
    Delete {
        name: TopicName,
        /// Also where a rollback would need it, or messages in it wait for a processor that no longer reads it
        #[arg(long)]
        accept_loss: bool,
    },
}

/// What may be changed later.
#[derive(clap::Args)]
pub(super) struct SettingsArgs {
    /// How long messages are kept, such as 7d or 12h; `none` keeps them forever
    #[arg(long, value_name = "DURATION", value_parser = duration_or_none)]
    retention: Option<Value>,
    /// Bytes that a partition keeps, such as 10GiB; `none` for no bound
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    retention_bytes: Option<Value>,
    /// Keep only the latest value of each key
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    compact: Option<bool>,
    /// How long a compacted topic keeps a message without a value, which removes its key
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    tombstones: Option<Value>,
    /// Bytes of a segment, the unit that retention removes; `none` for the host's default
    #[arg(long, value_name = "SIZE", value_parser = size_or_none)]
    segment_bytes: Option<Value>,
    /// The age at which a segment ends though it is not full; `none` for no bound
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

fn size_or_none(text: &str) -> Result<Value, String> {
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
        Err(_) => Err("say an offset or end".to_owned()),
    }
}

impl SettingsArgs {
    /// Those that were given, as the host has them.
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
                let failure = Failure::usage("nothing to change was named");
                return Err(failure.with_hint("name it, such as --retention 7d"));
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

/// The topic after a change, in few words; of more partitions, what it means.
fn changed(name: &TopicName, topic: &Value) -> String {
    let kept = kept(topic);
    let Value::Object(grown) = &topic["grown"] else {
        return format!("topic {name}; kept: {kept}");
    };
    let along = items(&grown["along"]).iter().map(cell);
    let along = along.collect::<Vec<_>>().join(", ");
    let along = match along.is_empty() {
        true => String::new(),
        false => format!("so have {along}\n"),
    };
    format!(
        "topic {name} has {} partitions now, not {}; kept: {kept}\n{along}{}",
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
        "MADE FOR",
    ];
    let note = "there are no topics yet; make one with `millrace topic create NAME`";
    table(&headings, rows, note)
}

/// How long a topic's messages are kept, in few words.
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
