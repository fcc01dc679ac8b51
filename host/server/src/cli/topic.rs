//! `topic`: make, list, show and delete topics.

use millrace_model::{Compression, TopicName};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::table::{cell, facts, items, short, table};

/// What to do with topics
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Make a topic; making the same one twice is making it once
    #[command(
        after_help = "Examples:\n  millrace topic create orders --partitions 4\n  \
        millrace topic create quakes --partitions 4 --partitioner region@1.0.0"
    )]
    Create {
        name: TopicName,
        /// How many partitions; cannot be changed later
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        /// When messages are acknowledged: after fdatasync, in the page cache, or in memory
        #[arg(long, default_value = "durable", value_parser = ["durable", "os", "none"])]
        durability: String,
        /// A module that exports `partitioner`, by digest or tag
        #[arg(long, value_name = "MODULE")]
        partitioner: Option<String>,
        /// How the host compresses the batches that it builds for the topic
        #[arg(long, default_value = "none", value_parser = Compression::ALL.map(Compression::name))]
        compression: String,
    },
    /// List all topics
    List,
    /// Show a topic and where its partitions begin and end
    Show { name: TopicName },
    /// Delete a topic and its messages
    Delete { name: TopicName },
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    match verb {
        Verb::Create {
            name,
            partitions,
            durability,
            partitioner,
            compression,
        } => {
            let body = json!({
                "name": name, "partitions": partitions, "durability": durability, "partitioner": partitioner,
                "settings": {"compression": compression},
            });
            let topic = client.send(Method::POST, "/v1/topics", &body)?;
            out.answer(&topic, |_| {
                format!("topic {name} is there; partitions: {partitions}")
            })
        }
        Verb::List => out.answer(&client.get("/v1/topics")?, list),
        Verb::Show { name } => out.answer(&client.get(&format!("/v1/topics/{name}"))?, show),
        Verb::Delete { name } => {
            client.delete(&format!("/v1/topics/{name}"))?;
            let gone = json!({"deleted": name});
            out.answer(&gone, |_| format!("topic {name} is deleted"))
        }
    }
}

fn list(answer: &Value) -> String {
    let row = |topic: &Value| {
        let partitioner = match &topic["partitioner"] {
            Value::Null => "built-in".to_owned(),
            digest => short(digest),
        };
        let cells = ["name", "partitions", "durability"].map(|field| cell(&topic[field]));
        [cells.as_slice(), &[partitioner, cell(&topic["owner"])]].concat()
    };
    let rows = items(&answer["topics"]).iter().map(row).collect();
    let headings = [
        "TOPIC",
        "PARTITIONS",
        "DURABILITY",
        "PARTITIONER",
        "MADE FOR",
    ];
    let note = "there are no topics yet; make one with `millrace topic create NAME`";
    table(&headings, rows, note)
}

fn show(topic: &Value) -> String {
    let fact = |name: &'static str| (name, cell(&topic[name]));
    let facts = facts(
        &[
            "name",
            "id",
            "partitions",
            "durability",
            "partitioner",
            "owner",
        ]
        .map(fact),
    );
    let row = |ends: &Value| {
        let number = |field: &str| ends[field].as_u64().unwrap_or(0);
        let count = number("end").saturating_sub(number("start"));
        let cells = ["partition", "start", "end"].map(|field| cell(&ends[field]));
        let damaged = items(&ends["damaged"]).iter();
        let damaged = damaged.map(|range| format!("{}..{}", range["from"], range["to"]));
        let damaged = damaged.collect::<Vec<_>>().join(", ");
        [cells.as_slice(), &[count.to_string(), damaged]].concat()
    };
    let rows = items(&topic["ends"]).iter().map(row).collect();
    let headings = ["PARTITION", "START", "END", "OFFSETS", "DAMAGED"];
    let ends = table(&headings, rows, "");
    format!("{facts}\n\n{ends}")
}
