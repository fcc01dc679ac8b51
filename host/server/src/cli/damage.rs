//! `damage`: lists the damage that a running host knows of, and accepts losses.

use millrace_model::TopicName;
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::table::{cell, items, table};

/// Manage damage
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List damage, and the progress of the search for more
    List,
    /// Accept the loss of damaged messages, so that processors waiting before them continue; removes nothing
    #[command(
        after_help = "Examples:\n  millrace damage list\n  millrace damage accept orders 2 --from 1200 --to 1260"
    )]
    Accept {
        topic: TopicName,
        partition: u32,
        /// The first offset to accept as lost
        #[arg(long)]
        from: u64,
        /// The offset after the last one
        #[arg(long)]
        to: u64,
    },
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    match verb {
        Verb::List => out.answer(&client.get("/v1/damage")?, list),
        Verb::Accept {
            topic,
            partition,
            from,
            to,
        } => {
            let path = format!("/v1/topics/{topic}/partitions/{partition}/damage/accept");
            let body = json!({"from": from, "to": to});
            let accepted = client.send(Method::POST, &path, &body)?;
            out.answer(&accepted, |accepted| {
                let ranges = items(&accepted["accepted"]);
                let count = |range: &Value| {
                    let number = |field: &str| range[field].as_u64().unwrap_or(0);
                    number("to").saturating_sub(number("from"))
                };
                let messages: u64 = ranges.iter().map(count).sum();
                format!("the loss of {messages} damaged messages is accepted; processors continue after them")
            })
        }
    }
}

fn list(answer: &Value) -> String {
    let row = |range: &Value| {
        let offsets = format!("{}..{}", range["from"], range["to"]);
        let bytes = match &range["bytes"] {
            Value::Null => String::new(),
            bytes => format!("\nbytes {}..{}", bytes["from"], bytes["to"]),
        };
        let kind = match range["kind"] == "misplaced" {
            true => "\nof another partition",
            false => "",
        };
        let state = match range["accepted_at"].is_null() {
            true => "processors wait",
            false => "accepted",
        };
        vec![
            cell(&range["topic"]),
            cell(&range["partition"]),
            offsets,
            format!("{}{bytes}{kind}", cell(&range["file"])),
            cell(&range["found_by"]),
            state.to_owned(),
        ]
    };
    let rows = items(&answer["ranges"]).iter().map(row).collect();
    let headings = [
        "TOPIC",
        "PARTITION",
        "OFFSETS",
        "WHERE",
        "FOUND BY",
        "STATE",
    ];
    let mut text = table(&headings, rows, "no damaged messages are known");
    for digest in items(&answer["modules"]) {
        text.push_str(&format!(
            "\nmodule {} is damaged; upload it again",
            cell(digest)
        ));
    }
    for file in items(&answer["state"]) {
        text.push_str(&format!(
            "\nstate of {} in {}/{} is damaged in {}: {}",
            cell(&file["processor"]),
            cell(&file["topic"]),
            cell(&file["partition"]),
            cell(&file["file"]),
            cell(&file["reason"])
        ));
    }
    format!("{text}\n\n{}", scrub(&answer["scrub"]))
}

fn scrub(scrub: &Value) -> String {
    let rate = scrub["bytes_per_second"].as_u64().unwrap_or(0);
    if rate == 0 {
        return "the background search for damage is off".to_owned();
    }
    let done = scrub["round_done"].as_f64().unwrap_or(0.0) * 100.0;
    match scrub["round_began_at"].is_null() {
        true => "the background search has finished a round; the next one is scheduled".to_owned(),
        false => {
            format!("the background search is running, {done:.0} % of the partitions are done")
        }
    }
}
