//! `processor replay`: runs a time range through a revision again, into another topic.

use std::time::Duration;

use millrace_model::{ProcessorName, TopicName};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use super::paths::path;
use super::table::{cell, items, when};
use crate::units::time;

/// How often `--wait` polls.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

const HELP: &str = "\
A replay is a processor of its own, with its own, initially empty state, retries and dead letters. All outputs go to --into, whatever topic
they name. Its input is fixed when it is created: every message whose timestamp is in the range, wherever it is, because timestamps
are set by producers and need not ascend. Once its partitions are done it can be deleted.

Examples:
  millrace processor replay shout --from 2026-11-21 --until 2026-11-22 --into loud-again
  millrace processor replay shout --from -2h --until -1h --into loud-again
  millrace processor replay shout --revision 3 --from 2026-11-21 --into loud-3 --as check-3 --wait
  millrace processor delete check-3 --reset-state";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(super) struct ReplayArgs {
    /// The processor whose input is replayed
    name: ProcessorName,
    /// The revision to run [default: the current one]
    #[arg(long)]
    revision: Option<u32>,
    /// Messages at or after this time: 2026-11-21T10:00:00Z, 2026-11-21, milliseconds since the Unix epoch, or 15m or -15m (ago)
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    from: u64,
    /// Messages before this time, in the same format [default: all]
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    until: Option<u64>,
    /// The topic for all outputs
    #[arg(long, value_name = "TOPIC")]
    into: TopicName,
    /// The name of the replay [default: NAME-replay-1, or the next free number]
    #[arg(long = "as", value_name = "NAME")]
    as_name: Option<ProcessorName>,
    /// Wait until everything is processed
    #[arg(long)]
    wait: bool,
}

pub(super) fn run(args: &ReplayArgs, client: &Client, out: &mut Output) -> Result<(), Failure> {
    let mut body = json!({"from": args.from, "into": args.into});
    let optional = [
        ("revision", json!(args.revision)),
        ("until", json!(args.until)),
        ("as", json!(args.as_name)),
    ];
    for (field, value) in optional {
        if !value.is_null() {
            body[field] = value;
        }
    }
    let answer = client.send(Method::POST, &path(&args.name, "/replay"), &body)?;
    if !args.wait {
        return out.answer(&answer, made);
    }
    let name = cell(&answer["name"]);
    loop {
        let status = client.get(&format!("/v1/processors/{name}"))?;
        if is_done(&status) {
            return out.answer(&status, |_| format!("{name} is done"));
        }
        if let Some(state) = stopped(&status) {
            return Err(Failure::failed(format!(
                "{name} has stopped: {state}; see `millrace processor show {name}`"
            )));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn made(replay: &Value) -> String {
    let name = cell(&replay["name"]);
    let ranges = items(&replay["replay"]["ranges"]).iter();
    let length = |range: &Value| {
        let [first, end] = ["first", "end"].map(|field| range[field].as_u64().unwrap_or(0));
        end.saturating_sub(first)
    };
    let offsets: u64 = ranges.map(length).sum();
    format!(
        "processor {name} replays the messages of that time among {offsets} offsets into {}; `millrace processor show {name}` shows its progress",
        cell(&replay["replay"]["into"])
    )
}

fn is_done(processor: &Value) -> bool {
    let mut partitions = items(&processor["partitions"]).iter();
    let settled = |partition: &Value| {
        partition["state"] == "done" || (partition["lag"] == 0 && partition["parked"] == 0)
    };
    !processor["replay"].is_null() && partitions.all(settled)
}

fn stopped(processor: &Value) -> Option<String> {
    let mut states = items(&processor["partitions"])
        .iter()
        .map(|p| cell(&p["state"]));
    states.find(|state| state.starts_with("stopped"))
}

/// The replay, for `processor show`.
pub(super) fn facts(processor: &Value) -> Vec<(&'static str, String)> {
    let replay = &processor["replay"];
    if replay.is_null() {
        return Vec::new();
    }
    let [of, revision, into] = ["of", "revision", "into"].map(|field| cell(&replay[field]));
    let until = match replay["until"].as_u64() {
        Some(u64::MAX) | None => "the end".to_owned(),
        Some(_) => when(&replay["until"]),
    };
    let from = when(&replay["from"]);
    let text = format!("revision {revision} of {of} into {into}, from {from} until {until}");
    let state = if is_done(processor) {
        "done"
    } else {
        "in progress"
    };
    vec![("replay", text), ("replayed", state.to_owned())]
}
