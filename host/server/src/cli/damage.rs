//! `damage`: what a running host knows to be damaged, and giving up what is lost.

use millrace_model::TopicName;
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::table::{cell, items, table};

/// What to do about damage
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List what is damaged, and how far the search for more is
    List,
    /// Give up damaged messages: processors that wait before them go on; nothing is removed
    #[command(
        after_help = "Examples:\n  millrace damage list\n  millrace damage accept orders 2 --from 1200 --to 1260"
    )]
    Accept {
        topic: TopicName,
        partition: u32,
        /// The first offset to give up
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
                format!("{messages} damaged messages are given up; processors go on after them")
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
            false => "given up",
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
    let headings = ["TOPIC", "PARTITION", "OFFSETS", "WHERE", "MET BY", "STATE"];
    let mut text = table(&headings, rows, "no message is known to be damaged");
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
        return "nothing searches for damage in the background".to_owned();
    }
    let done = scrub["round_done"].as_f64().unwrap_or(0.0) * 100.0;
    match scrub["round_began_at"].is_null() {
        true => "everything was read through; the next round comes in its time".to_owned(),
        false => {
            format!("the search for more is under way, {done:.0} % of the partitions are done")
        }
    }
}
