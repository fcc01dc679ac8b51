//! `dlq`: look at dead letters and send them again.

use std::str::FromStr;

use millrace_model::{ProcessorName, TopicName};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::{Client, escaped};
use super::failure::Failure;
use super::table::{cell, facts, items, table, when};

/// What to do with dead letters
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List the dead letters of a processor
    #[command(after_help = "Example:\n  millrace dlq list classify --class quarry-blast")]
    List {
        /// The processor's name
        processor: ProcessorName,
        /// Only those of this class
        #[arg(long)]
        class: Option<String>,
        /// Also those that were sent again
        #[arg(long)]
        redriven: bool,
        /// How many at the most
        #[arg(long, default_value_t = 100)]
        max: usize,
    },
    /// Show a dead letter with all its evidence
    #[command(after_help = "Example:\n  millrace dlq show classify quakes.classify.dlq/0/17")]
    Show {
        /// The processor's name
        processor: ProcessorName,
        /// As `dlq list` shows it: TOPIC/PARTITION/OFFSET
        dead_letter: Place,
    },
    /// Send dead letters again, to this processor only
    #[command(
        after_help = "Examples:\n  millrace dlq redrive classify --all\n  millrace dlq redrive classify quakes.classify.dlq/0/17"
    )]
    Redrive {
        /// The processor's name
        processor: ProcessorName,
        /// All that were not sent again yet
        #[arg(
            long,
            required_unless_present = "dead_letters",
            conflicts_with = "dead_letters"
        )]
        all: bool,
        /// As `dlq list` shows them: TOPIC/PARTITION/OFFSET
        dead_letters: Vec<Place>,
    },
}

/// Where a dead letter stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    topic: TopicName,
    partition: u32,
    offset: u64,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [topic, partition, offset] = parts[..] else {
            return Err("write TOPIC/PARTITION/OFFSET".to_owned());
        };
        Ok(Self {
            topic: TopicName::parse(topic).map_err(|error| error.to_string())?,
            partition: partition.parse().map_err(|_| "the partition is a number")?,
            offset: offset.parse().map_err(|_| "the offset is a number")?,
        })
    }
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    match verb {
        Verb::List {
            processor,
            class,
            redriven,
            max,
        } => {
            let class =
                class.map_or_else(String::new, |class| format!("&class={}", escaped(&class)));
            let query = format!("?max={max}&redriven={redriven}{class}");
            let path = format!("/v1/processors/{processor}/dead-letters{query}");
            out.answer(&client.get(&path)?, list)
        }
        Verb::Show {
            processor,
            dead_letter: place,
        } => {
            let Place {
                topic,
                partition,
                offset,
            } = place;
            let path =
                format!("/v1/processors/{processor}/dead-letters/{topic}/{partition}/{offset}");
            out.answer(&client.get(&path)?, show)
        }
        Verb::Redrive {
            processor,
            all,
            dead_letters,
        } => {
            let path = format!("/v1/processors/{processor}/dead-letters/redrive");
            let answer = client.send(Method::POST, &path, &which(all, &dead_letters))?;
            out.answer(&answer, |answer| {
                let (sent, already) = (&answer["sent"], &answer["already"]);
                format!("{sent} sent again to {processor}; {already} had been before")
            })
        }
    }
}

fn which(all: bool, places: &[Place]) -> Value {
    if all {
        return json!({"all": true});
    }
    let place = |p: &Place| json!({"topic": p.topic, "partition": p.partition, "offset": p.offset});
    json!({"dead_letters": places.iter().map(place).collect::<Vec<_>>()})
}

fn place_of(letter: &Value) -> String {
    ["topic", "partition", "offset"]
        .map(|field| cell(&letter[field]))
        .join("/")
}

fn list(answer: &Value) -> String {
    let row = |letter: &Value| {
        let again = match letter["redriven"].as_bool() {
            Some(true) => "yes",
            _ => "-",
        };
        let cells = ["cause", "class", "attempts", "revision", "reason"].map(|f| cell(&letter[f]));
        let key = cell(&letter["message"]["key"]);
        [
            &[place_of(letter), key],
            cells.as_slice(),
            &[again.to_owned()],
        ]
        .concat()
    };
    let rows = items(&answer["dead_letters"]).iter().map(row).collect();
    let headings = [
        "DEAD LETTER",
        "KEY",
        "CAUSE",
        "CLASS",
        "ATTEMPTS",
        "REVISION",
        "REASON",
        "REDRIVEN",
    ];
    table(&headings, rows, "there are no dead letters")
}

fn show(letter: &Value) -> String {
    let fact = |name: &'static str| (name, cell(&letter[name]));
    let origin = ["origin_topic", "origin_partition", "origin_offset"]
        .map(|field| cell(&letter[field]))
        .join("/");
    let mut pairs = vec![("dead letter", place_of(letter)), ("origin", origin)];
    pairs.extend(["cause", "class", "reason", "attempts", "revision", "module"].map(fact));
    pairs.push(("first failed", when(&letter["first_failed_at"])));
    pairs.push(("died", when(&letter["died_at"])));
    pairs.extend(["redriven", "backtrace"].map(fact));
    pairs.extend(call_facts(&letter["call"]));
    let message = &letter["message"];
    pairs.extend(
        ["key", "value", "key_base64", "value_base64"].map(|name| (name, cell(&message[name]))),
    );
    pairs.push(("headers", own_headers(message)));
    pairs.retain(|(name, value)| !(name.ends_with("_base64") && value == "-"));
    let row = |attempt: &Value| {
        let cells = ["revision", "class", "reason"].map(|field| cell(&attempt[field]));
        [&[when(&attempt["at"])], cells.as_slice()].concat()
    };
    let rows: Vec<_> = items(&letter["attempt_log"]).iter().map(row).collect();
    let attempts = table(
        &["AT", "REVISION", "CLASS", "REASON"],
        rows,
        "no attempts are remembered",
    );
    format!("{}\n\n{attempts}", facts(&pairs))
}

/// What the call used, and what the guest said in it.
fn call_facts(call: &Value) -> Vec<(&'static str, String)> {
    let Some(guest_us) = call["guest_us"].as_u64() else {
        return Vec::new();
    };
    let messages = match call["messages"].as_u64() {
        Some(1) => "one message".to_owned(),
        _ => format!("{} messages", cell(&call["messages"])),
    };
    let (ms, us) = (guest_us / 1_000, guest_us % 1_000);
    let memory_kib = call["memory_bytes"].as_u64().unwrap_or_default() >> 10;
    let line = |line: &Value| format!("{}: {}", cell(&line["level"]), cell(&line["text"]));
    let said: Vec<String> = items(&call["log"]).iter().map(line).collect();
    let used = format!("{ms}.{us:03} ms for {messages}, {memory_kib} KiB of memory");
    let said = match said.as_slice() {
        [] => "-".to_owned(),
        lines => lines.join("\n"),
    };
    vec![("its call took", used), ("it wrote", said)]
}

/// The message's own headers: what the host added is shown as evidence.
fn own_headers(message: &Value) -> String {
    let headers = message["headers"].as_object().into_iter().flatten();
    let own = headers.filter(|(name, _)| !name.starts_with("millrace-"));
    let lines: Vec<String> = own
        .map(|(name, value)| format!("{name}: {}", cell(value)))
        .collect();
    match lines.as_slice() {
        [] => "-".to_owned(),
        lines => lines.join("\n"),
    }
}
