//! `processor parked`, `try-now` and `give-up`: lists parked messages, why and until when they wait, and ends their wait.

use millrace_broker::MessagePlace;
use millrace_model::{ProcessorName, TopicName};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::{Client, escaped};
use super::failure::Failure;
use super::output::Output;
use super::paths::path;
use super::table::{cell, items, table, when};

/// Which messages `processor parked` lists.
#[derive(clap::Args)]
#[command(after_help = "\
A parked message waits for its next attempt, or behind an earlier message with its key. `processor try-now` ends the wait for the next attempt;
`processor give-up` turns the message into a dead letter.

Examples:
  millrace processor parked shout
  millrace processor parked shout --class busy --max 1000")]
pub(super) struct ParkedArgs {
    name: ProcessorName,
    /// Only those in this topic
    #[arg(long)]
    topic: Option<TopicName>,
    /// Only those in partitions of this number
    #[arg(long)]
    partition: Option<u32>,
    /// Only those whose last attempt failed with this class
    #[arg(long)]
    class: Option<String>,
    /// Continue here: the position that an earlier list printed
    #[arg(long, value_name = "PLACE")]
    from: Option<MessagePlace>,
    /// Maximum number of messages
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    max: usize,
}

/// Which messages the command is about.
#[derive(clap::Args)]
pub(super) struct WhichArgs {
    name: ProcessorName,
    /// As shown by `processor parked`: TOPIC/PARTITION/OFFSET
    #[arg(required_unless_present_any = ["class", "all"])]
    messages: Vec<MessagePlace>,
    /// All whose last attempt failed with this class
    #[arg(long, conflicts_with = "messages")]
    class: Option<String>,
    /// All parked messages of the processor
    #[arg(long, conflicts_with_all = ["messages", "class"])]
    all: bool,
}

pub(super) fn list(args: &ParkedArgs, client: &Client, out: &mut Output) -> Result<(), Failure> {
    let mut query = format!("/parked?max={}", args.max);
    let mut narrow = |field: &str, value: Option<String>| {
        if let Some(value) = value {
            query.push_str(&format!("&{field}={}", escaped(&value)));
        }
    };
    narrow("topic", args.topic.as_ref().map(ToString::to_string));
    narrow("partition", args.partition.map(|p| p.to_string()));
    narrow("class", args.class.clone());
    narrow("from", args.from.as_ref().map(ToString::to_string));
    out.answer(&client.get(&path(&args.name, &query))?, listed)
}

fn listed(answer: &Value) -> String {
    let row = |parked: &Value| {
        let place = [&parked["topic"], &parked["partition"], &parked["offset"]].map(cell);
        let key = match &parked["key"] {
            Value::Null => cell(&parked["key_base64"]),
            key => cell(key),
        };
        let waits = match parked["behind"].as_u64() {
            Some(offset) => format!("behind offset {offset}"),
            None if parked["held_since"].is_null() => when(&parked["due"]),
            None => format!(
                "{} (held: its revision is not proven yet)",
                when(&parked["due"])
            ),
        };
        vec![
            place.join("/"),
            key,
            cell(&parked["attempts"]),
            waits,
            cell(&parked["class"]),
            cell(&parked["reason"]),
        ]
    };
    let rows = items(&answer["parked"]).iter().map(row).collect();
    let headings = ["MESSAGE", "KEY", "ATTEMPTS", "WAITS", "CLASS", "REASON"];
    let listed = table(&headings, rows, "no such messages are parked");
    match answer["next"].as_str() {
        Some(next) => format!(
            "{listed}\n{} parked in total; continue with --from {next}",
            cell(&answer["total"])
        ),
        None => listed,
    }
}

pub(super) fn act(
    args: &WhichArgs,
    verb: &str,
    client: &Client,
    out: &mut Output,
) -> Result<(), Failure> {
    let place = |place: &MessagePlace| json!({"topic": place.topic, "partition": place.partition, "offset": place.offset});
    let body = match &args.class {
        Some(class) => json!({"class": class}),
        None if args.all => json!({"all": true}),
        None => json!({"messages": args.messages.iter().map(place).collect::<Vec<_>>()}),
    };
    let path = path(&args.name, &format!("/parked/{verb}"));
    let answer = client.send(Method::POST, &path, &body)?;
    let none_of_those_named = answer["done"] == 0 && !args.messages.is_empty();
    out.answer(&answer, |answer| done(answer, verb))?;
    match items(&answer["left"])
        .first()
        .filter(|_| none_of_those_named)
    {
        Some(left) => Err(Failure::failed(format!(
            "{} was left as it is: {}",
            cell(&left["message"]),
            cell(&left["why"])
        ))),
        None => Ok(()),
    }
}

fn done(answer: &Value, verb: &str) -> String {
    let count = cell(&answer["done"]);
    let mut lines = vec![match verb {
        "give-up" => format!("{count} given up; `millrace dlq list` shows them"),
        _ => format!("{count} due now"),
    }];
    let left = items(&answer["left"]).iter();
    lines.extend(left.map(|left| format!("{}: {}", cell(&left["message"]), cell(&left["why"]))));
    lines.join("\n")
}
