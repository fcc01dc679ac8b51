//! `consumer`: named readers of a topic and their positions. `consume --as` is one.

use millrace_model::{ConsumerName, TopicName};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::{Client, escaped};
use super::consume::{Begin, begin};
use super::failure::Failure;
use super::table::{cell, facts, items, table, when};

const RESET_HELP: &str = "\
Examples:
  millrace consumer reset orders billing --to earliest               read everything again
  millrace consumer reset orders billing --to latest                 skip the existing messages
  millrace consumer reset orders billing --to 2026-11-21   start with the first message of that day
  millrace consumer reset orders billing --to 1200 --partition 3

The current reader loses its lease, so it cannot commit over the new positions.";

/// Manage consumers
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Create a consumer; `consume --as` does so by itself
    #[command(after_help = "Examples:\n  millrace consumer create orders billing --from latest")]
    Create {
        topic: TopicName,
        name: ConsumerName,
        /// Where it starts: earliest, latest, an offset in each partition, or a time as for `consume`
        #[arg(long, default_value = "earliest", value_parser = begin, allow_hyphen_values = true)]
        from: Begin,
    },
    /// List consumers of all topics or of one
    List { topic: Option<TopicName> },
    /// Show a consumer and its position in each partition
    Show {
        topic: TopicName,
        name: ConsumerName,
    },
    /// Set its positions, forward or back
    #[command(after_help = RESET_HELP)]
    Reset {
        topic: TopicName,
        name: ConsumerName,
        /// Where it continues: earliest, latest, an offset in each partition, or a time as for `consume`
        #[arg(long, value_parser = begin, allow_hyphen_values = true)]
        to: Begin,
        /// Only this partition [default: all]
        #[arg(long)]
        partition: Option<u32>,
    },
    /// Delete a consumer and its positions; the messages stay
    Delete {
        topic: TopicName,
        name: ConsumerName,
    },
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    let path =
        |topic: &TopicName, name: &ConsumerName| format!("/v1/topics/{topic}/consumers/{name}");
    match verb {
        Verb::Create { topic, name, from } => {
            let path = format!(
                "{}?from={}",
                path(&topic, &name),
                escaped(&from.to_string())
            );
            out.answer(&client.send(Method::PUT, &path, &json!({}))?, show)
        }
        Verb::List { topic } => {
            let path = topic.map_or_else(
                || "/v1/consumers".to_owned(),
                |topic| format!("/v1/topics/{topic}/consumers"),
            );
            out.answer(&client.get(&path)?, list)
        }
        Verb::Show { topic, name } => out.answer(&client.get(&path(&topic, &name))?, show),
        Verb::Reset {
            topic,
            name,
            to,
            partition,
        } => {
            let path = format!("{}/reset", path(&topic, &name));
            let body = json!({"to": to.to_string(), "partition": partition});
            out.answer(&client.send(Method::POST, &path, &body)?, show)
        }
        Verb::Delete { topic, name } => {
            client.delete(&path(&topic, &name))?;
            let gone = json!({"deleted": name, "topic": topic});
            out.answer(&gone, |_| {
                format!("consumer {name} of topic {topic} is deleted")
            })
        }
    }
}

/// When it was done, and by whom.
fn noted(consumer: &Value, what: &str) -> String {
    let (at, by) = (
        &consumer[format!("{what}_at")],
        &consumer[format!("{what}_by")],
    );
    match (at, by) {
        (Value::Null, _) => cell(&Value::Null),
        (at, by) => format!("{}, by {}", when(at), cell(by)),
    }
}

fn reader(consumer: &Value) -> String {
    match &consumer["reader"] {
        Value::Null => cell(&Value::Null),
        reader => format!("{}, until {}", cell(&reader["by"]), when(&reader["until"])),
    }
}

fn list(answer: &Value) -> String {
    let row = |consumer: &Value| {
        vec![
            cell(&consumer["topic"]),
            cell(&consumer["name"]),
            cell(&consumer["lag"]),
            reader(consumer),
            noted(consumer, "committed"),
        ]
    };
    let rows = items(&answer["consumers"]).iter().map(row).collect();
    let headings = ["TOPIC", "NAME", "LAG", "READER", "COMMITTED"];
    table(&headings, rows, "there are no consumers")
}

fn show(consumer: &Value) -> String {
    let about = facts(&[
        ("consumer", cell(&consumer["name"])),
        ("topic", cell(&consumer["topic"])),
        ("made", when(&consumer["created_at"])),
        ("lag", cell(&consumer["lag"])),
        ("reader", reader(consumer)),
        ("committed", noted(consumer, "committed")),
        ("reset", noted(consumer, "reset")),
    ]);
    let row = |place: &Value| {
        let fields = ["partition", "position", "start", "end", "lag"];
        fields.map(|field| cell(&place[field])).to_vec()
    };
    let rows = items(&consumer["partitions"]).iter().map(row).collect();
    let headings = ["PARTITION", "POSITION", "START", "END", "LAG"];
    format!(
        "{about}\n\n{}",
        table(&headings, rows, "it has no partitions")
    )
}
