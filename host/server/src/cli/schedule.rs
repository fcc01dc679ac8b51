//! `schedule`: creates messages by the clock.

use millrace_model::{Cron, ScheduleName, TopicName};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::produce::{HeaderArg, header_list};
use super::table::{cell, facts, items, table, when};

const CREATE_HELP: &str = "\
Examples:
  millrace schedule create tick --topic ticks --cron '*/5 * * * *' --value now    every five minutes
  millrace schedule create report --topic jobs --cron '30 6 * * mon-fri' --key daily --value go
  millrace schedule create beat --topic beats --cron '*/10 * * * * *'             every ten seconds

The pattern is minute, hour, day, month and day of the week, in UTC, with seconds first if there are six fields;
or it is @hourly, @daily, @weekly, @monthly or @yearly. A range may wrap around: fri-sun, 22-2. Each time creates one message, also across crashes;
all times that passed while the host was down create one message together; its header
millrace-missed says how many earlier times it also stands for.
Repeating the command changes nothing; another pattern or message changes the schedule.";

/// Manage schedules
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Create or change a schedule
    #[command(after_help = CREATE_HELP)]
    Create {
        name: ScheduleName,
        /// The topic for its messages
        #[arg(long)]
        topic: TopicName,
        /// When, in UTC
        #[arg(long, value_name = "PATTERN")]
        cron: Cron,
        /// The key of every message
        #[arg(long)]
        key: Option<String>,
        /// The value of every message
        #[arg(long)]
        value: Option<String>,
        /// A header of every message; repeat it for several
        #[arg(long = "header", value_name = "NAME=VALUE")]
        headers: Vec<HeaderArg>,
        /// The partition [default: the topic's partitioner chooses]
        #[arg(long)]
        partition: Option<u32>,
    },
    /// List schedules
    List,
    /// Show a schedule and its status
    Show { name: ScheduleName },
    /// Create no messages until it is resumed
    Pause { name: ScheduleName },
    /// Resume with the next time; times missed during the pause are skipped
    Resume { name: ScheduleName },
    /// Create its message now, once; the next time stays as it is
    #[command(after_help = "Examples:\n  millrace schedule run report")]
    Run { name: ScheduleName },
    /// Delete a schedule; the messages that it created stay
    Delete { name: ScheduleName },
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    let path = |name: &ScheduleName| format!("/v1/schedules/{name}");
    let steer = |name: &ScheduleName, verb: &str| {
        let path = format!("/v1/schedules/{name}/{verb}");
        client.send(Method::POST, &path, &json!({}))
    };
    match verb {
        Verb::Create {
            name,
            topic,
            cron,
            key,
            value,
            headers,
            partition,
        } => {
            let body = json!({
                "topic": topic, "cron": cron, "key": key, "value": value, "header_list": header_list(&headers), "partition": partition,
            });
            out.answer(&client.send(Method::PUT, &path(&name), &body)?, show)
        }
        Verb::List => out.answer(&client.get("/v1/schedules")?, list),
        Verb::Show { name } => out.answer(&client.get(&path(&name))?, show),
        Verb::Pause { name } => out.answer(&steer(&name, "pause")?, show),
        Verb::Resume { name } => out.answer(&steer(&name, "resume")?, show),
        Verb::Run { name } => out.answer(&steer(&name, "run")?, ran),
        Verb::Delete { name } => {
            client.delete(&path(&name))?;
            let gone = json!({"deleted": name});
            out.answer(&gone, |_| format!("schedule {name} is deleted"))
        }
    }
}

fn ran(schedule: &Value) -> String {
    let [name, topic] = ["name", "topic"].map(|field| cell(&schedule[field]));
    let then = match schedule["paused"] == true {
        true => "it is still paused".to_owned(),
        false => format!("its next time is still {}", next(schedule)),
    };
    format!("schedule {name} created a message in topic {topic}; {then}")
}

fn next(schedule: &Value) -> String {
    match schedule["paused"] == true {
        true => "paused".to_owned(),
        false => when(&schedule["next"]),
    }
}

/// Why it does not follow its pattern.
fn trouble(schedule: &Value) -> String {
    match &schedule["problem"] {
        Value::Null => cell(&schedule["waiting"]),
        problem => cell(problem),
    }
}

fn by_hand(schedule: &Value) -> String {
    match (&schedule["last_run"], &schedule["last_run_by"]) {
        (Value::Null, _) => cell(&Value::Null),
        (at, Value::Null) => when(at),
        (at, by) => format!("{}, by {}", when(at), cell(by)),
    }
}

fn list(answer: &Value) -> String {
    let row = |schedule: &Value| {
        vec![
            cell(&schedule["name"]),
            cell(&schedule["cron"]),
            cell(&schedule["topic"]),
            next(schedule),
            cell(&schedule["made"]),
            trouble(schedule),
        ]
    };
    let rows = items(&answer["schedules"]).iter().map(row).collect();
    let headings = ["NAME", "CRON (UTC)", "TOPIC", "NEXT", "CREATED", "PROBLEM"];
    table(&headings, rows, "there are no schedules")
}

fn show(schedule: &Value) -> String {
    facts(&[
        ("schedule", cell(&schedule["name"])),
        ("cron (UTC)", cell(&schedule["cron"])),
        ("topic", cell(&schedule["topic"])),
        ("key", cell(&schedule["key"])),
        ("value", cell(&schedule["value"])),
        ("next", next(schedule)),
        ("last", when(&schedule["last"])),
        ("made", cell(&schedule["made"])),
        ("last run by hand", by_hand(schedule)),
        ("problem", cell(&schedule["problem"])),
        ("waiting", cell(&schedule["waiting"])),
    ])
}
