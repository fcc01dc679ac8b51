//! `processor state`: shows, exports, imports and empties the state of a processor.

use std::io::BufRead;

use millrace_model::bounds::{STATE_BYTES_MAX, STATE_ENTRIES_MAX};
use millrace_model::{ProcessorName, TopicName};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::{Client, escaped};
use super::failure::{Exit, Failure};
use super::output::Output;
use super::table::{cell, facts, items, table, when};
use crate::http::check_entry;
use crate::text;

/// Entries per request.
const ENTRIES_AT_ONCE: usize = 1_000;
/// Maximum bytes of entries that one request writes, except for a single larger entry; well below what the host accepts.
const BYTES_AT_ONCE: usize = 1 << 20;
/// Maximum bytes of standard input for an import; a longer input is refused, and nothing is written: split it.
const IMPORT_BYTES_MAX: u64 = 1 << 30;

/// Manage a processor's state
#[derive(clap::Subcommand)]
pub(super) enum StateVerb {
    /// Show entries by key, as of the processor's last commit; without --partition, how much each partition has
    #[command(
        after_help = "Examples:\n  millrace processor state show count                     how much there is, in each partition\n  millrace processor state show count --key user-17       in whichever partition it is\n  millrace processor state show count --partition 3 --prefix user-"
    )]
    Show {
        #[command(flatten)]
        place: Place,
        /// This key, in whichever partition it is
        #[arg(long, conflicts_with_all = ["partition", "prefix"])]
        key: Option<String>,
        /// Only keys with this prefix
        #[arg(long, default_value = "")]
        prefix: String,
        /// Maximum number of entries
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        max: usize,
    },
    /// Write all entries to standard output, one JSON object per line
    #[command(
        after_help = "Pause the processor first: entries are read in parts, and the export fails if any are written meanwhile.\n\nExamples:\n  millrace processor pause count\n  millrace processor state export count --partition 0 > count-0.jsonl"
    )]
    Export {
        #[command(flatten)]
        place: Place,
    },
    /// Read entries from standard input, in the format of export
    #[command(
        after_help = "Pause the processor first: entries are written in parts. Nothing is written before all lines have been checked.\n\nExamples:\n  millrace processor pause count\n  millrace processor state import count --partition 0 --reset < count-0.jsonl"
    )]
    Import {
        #[command(flatten)]
        place: Place,
        /// Empty the state first
        #[arg(long)]
        reset: bool,
    },
    /// Remove all entries of a partition
    Reset {
        #[command(flatten)]
        place: Place,
    },
}

/// The processor, and where its state is
#[derive(clap::Args)]
pub(super) struct Place {
    /// The processor
    name: ProcessorName,
    /// The input topic, if the processor reads several, or one that it no longer reads
    #[arg(long)]
    topic: Option<TopicName>,
    /// The partition; optional if there is only one
    #[arg(long)]
    partition: Option<u32>,
}

impl Place {
    fn path(&self) -> String {
        format!("/v1/processors/{}/state", self.name)
    }

    /// The same with its partition, which is the only one unless one is named.
    fn with_partition(self, client: &Client) -> Result<Self, Failure> {
        if self.partition.is_some() {
            return Ok(self);
        }
        let totals = client.get(&self.totals())?;
        match items(&totals["partitions"]) {
            [one] => Ok(Self {
                partition: one["partition"].as_u64().and_then(|p| p.try_into().ok()),
                ..self
            }),
            several => Err(Failure::usage(format!(
                "{} has state in {} partitions; name one of them",
                self.name,
                several.len()
            ))
            .with_hint(format!(
                "--partition NUMBER; `millrace processor state show {}` lists them",
                self.name
            ))),
        }
    }

    fn totals(&self) -> String {
        let topic = self.topic.as_ref();
        let topic = topic.map_or_else(String::new, |topic| format!("?topic={topic}"));
        format!("{}/totals{topic}", self.path())
    }

    fn key(&self, key: &str) -> String {
        let topic = self.topic.as_ref();
        let topic = topic.map_or_else(String::new, |topic| format!("&topic={topic}"));
        format!("{}/key?key={}{topic}", self.path(), escaped(key))
    }

    fn page(&self, rest: &str) -> String {
        let topic = self.topic.as_ref();
        let topic = topic
            .map(|topic| format!("&topic={topic}"))
            .unwrap_or_default();
        let partition = self.partition.unwrap_or_default();
        format!("{}?partition={partition}{topic}{rest}", self.path())
    }

    fn body(&self, reset: bool, entries: &[Value]) -> Value {
        json!({"topic": self.topic, "partition": self.partition, "reset": reset, "entries": entries})
    }
}

pub(super) fn run(verb: StateVerb, client: &Client, out: &mut Output) -> Result<(), Failure> {
    match verb {
        StateVerb::Show {
            place,
            key: Some(key),
            ..
        } => {
            let answer = client.get(&place.key(&key))?;
            match items(&answer["found"]) {
                [] => Err(not_there(&place.name, &key)),
                _ => out.answer(&answer, found),
            }
        }
        StateVerb::Show {
            place,
            prefix,
            max,
            key: None,
        } => {
            if place.partition.is_none() {
                let answer = client.get(&place.totals())?;
                if items(&answer["partitions"]).len() != 1 {
                    return out.answer(&answer, totals);
                }
            }
            let place = place.with_partition(client)?;
            let rest = format!("&prefix={}&max={max}", escaped(&prefix));
            out.answer(&client.get(&place.page(&rest))?, show)
        }
        StateVerb::Export { place } => export(&place.with_partition(client)?, client, out),
        StateVerb::Import { place, reset } => {
            import(&place.with_partition(client)?, reset, client, out)
        }
        StateVerb::Reset { place } => {
            let place = place.with_partition(client)?;
            let answer = client.send(Method::POST, &place.path(), &place.body(true, &[]))?;
            out.answer(&answer, |_| {
                format!(
                    "the state of {} in partition {} is empty",
                    place.name,
                    place.partition.unwrap_or_default()
                )
            })
        }
    }
}

fn not_there(name: &ProcessorName, key: &str) -> Failure {
    let message = format!("the state of {name} has no key {key:?} in any partition");
    let hint = format!("`millrace processor state show {name}` shows how much there is, and where");
    Failure::new(Exit::Unknown, "unknown-key", message).with_hint(hint)
}

fn found(answer: &Value) -> String {
    let row = |found: &Value| {
        let place = ["topic", "partition", "as_of"].map(|field| cell(&found[field]));
        [&place[..], &entry(&found["entry"])[1..]].concat()
    };
    let rows = items(&answer["found"]).iter().map(row).collect();
    let headings = ["TOPIC", "PARTITION", "AS OF OFFSET", "VALUE", "ENDS AT"];
    table(&headings, rows, "there is no such key")
}

fn totals(answer: &Value) -> String {
    let row = |one: &Value| {
        ["topic", "partition", "as_of", "entries", "bytes"]
            .map(|field| cell(&one[field]))
            .to_vec()
    };
    let rows = items(&answer["partitions"]).iter().map(row).collect();
    let pairs = ["entries", "bytes"].map(|field| (field, cell(&answer[field])));
    let headings = ["TOPIC", "PARTITION", "AS OF OFFSET", "ENTRIES", "BYTES"];
    let listed = table(&headings, rows, "it reads no topics");
    format!("{}\n\n{listed}", facts(&pairs))
}

/// Key, value and expiry of an entry.
fn entry(entry: &Value) -> Vec<String> {
    let of = |names: [&str; 2]| {
        let given = names.into_iter().find(|name| !entry[*name].is_null());
        given.map_or_else(String::new, |name| cell(&entry[name]))
    };
    // Eight bytes are usually a number, unless they are readable text.
    let is_text = |text: &str| !text.chars().any(char::is_control);
    let value = match (&entry["number"], entry["value"].as_str()) {
        (Value::Null, _) => of(["value", "value_base64"]),
        (_, Some(text)) if is_text(text) => text.to_owned(),
        (number, _) => cell(number),
    };
    let ends = match &entry["ends_at"] {
        Value::Null => String::new(),
        at => when(at),
    };
    vec![of(["key", "key_base64"]), value, ends]
}

fn show(answer: &Value) -> String {
    let row = |one: &Value| entry(one);
    let rows = items(&answer["entries"]).iter().map(row).collect();
    let pairs = [
        ("as of offset", cell(&answer["as_of"])),
        ("entries", cell(&answer["entries_total"])),
        ("bytes", cell(&answer["bytes_total"])),
    ];
    let headings = ["KEY", "VALUE", "ENDS AT"];
    let listed = table(&headings, rows, "there are no such entries");
    let more = match answer["has_more"] == true {
        true => "\nthere are more: raise --max, or use --prefix; export writes all",
        false => "",
    };
    format!("{}\n\n{listed}{more}", facts(&pairs))
}

fn export(place: &Place, client: &Client, out: &mut Output) -> Result<(), Failure> {
    let mut after = String::new();
    let mut before: Option<Value> = None;
    loop {
        let rest = format!("&max={ENTRIES_AT_ONCE}{after}");
        let page = client.get(&place.page(&rest))?;
        let version = page["version"].clone();
        if before.is_some_and(|before| before != version) {
            let torn = "the state changed during the export, so the exported entries are inconsistent and must not be used";
            return Err(Failure::failed(torn).with_hint(
                "pause the processor until `millrace processor show` says that all partitions are paused, and export again",
            ));
        }
        before = Some(version);
        let entries = items(&page["entries"]);
        for entry in entries {
            out.json_line(entry)?;
        }
        out.flush()?;
        let Some(last) = entries.last().filter(|_| page["has_more"] == true) else {
            return Ok(());
        };
        after = match (last["key"].as_str(), last["key_base64"].as_str()) {
            (Some(key), _) => format!("&after={}", escaped(key)),
            (_, key) => format!("&after_base64={}", escaped(key.unwrap_or_default())),
        };
    }
}

fn import(
    place: &Place,
    mut reset: bool,
    client: &Client,
    out: &mut Output,
) -> Result<(), Failure> {
    let lines = entries_of(std::io::stdin().lock())?;
    let mut written = 0;
    // Sends at least one request, so that a missing partition is reported even for an empty input.
    loop {
        let page = page_of(&lines[written..]);
        let entries = page.iter().map(|line| serde_json::from_str(line));
        let entries: Vec<Value> = entries
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::usage(format!("standard input: {error}")))?;
        let body = place.body(std::mem::take(&mut reset), &entries);
        let sent = client.send(Method::POST, &place.path(), &body);
        sent.map_err(|failure| {
            failure.about(&format!(
                "only {written} of {} entries were written; repeat the whole import",
                lines.len()
            ))
        })?;
        written += page.len();
        if written == lines.len() {
            break;
        }
    }
    out.answer(&json!({"written": written}), |_| {
        format!(
            "{written} entries were written to the state of {}",
            place.name
        )
    })
}

/// Parses all lines before anything is sent: an error in the last line must not leave the state half imported.
fn entries_of(input: impl BufRead) -> Result<Vec<String>, Failure> {
    let unwritten = |message: String| {
        Failure::usage(message).with_hint(
            "nothing was written; correct the line, or export again, and repeat the import",
        )
    };
    let (mut lines, mut read, mut weight, mut number) = (Vec::new(), 0, 0, 0);
    let mut input = input.take(IMPORT_BYTES_MAX);
    loop {
        let mut line = Vec::new();
        let unreadable = |error| unwritten(format!("standard input: {error}"));
        let bytes = input.read_until(b'\n', &mut line).map_err(unreadable)?;
        if bytes == 0 {
            return Ok(lines);
        }
        read += bytes as u64;
        number += 1;
        let wrong = |why: String| unwritten(format!("line {number}: {why}"));
        let line = text::whole(text::without_end(&line)).map_err(wrong)?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        weight += check_entry(line).map_err(wrong)?;
        lines.push(line.to_owned());
        if read >= IMPORT_BYTES_MAX {
            return Err(unwritten(format!(
                "line {number}: the input exceeds the {IMPORT_BYTES_MAX} bytes of one import; split it, and import the later parts without --reset"
            )));
        }
        if lines.len() > STATE_ENTRIES_MAX || weight > STATE_BYTES_MAX {
            return Err(unwritten(format!(
                "line {number}: the input exceeds the state of a partition, {STATE_ENTRIES_MAX} entries and {STATE_BYTES_MAX} bytes"
            )));
        }
    }
}

/// As many entries as one request takes; at least one, if there are any.
fn page_of(lines: &[String]) -> &[String] {
    let mut bytes = 0;
    let fits = lines.iter().take_while(|line| {
        bytes += line.len() + 1;
        bytes <= BYTES_AT_ONCE
    });
    let count = fits.take(ENTRIES_AT_ONCE).count();
    &lines[..count.max(1).min(lines.len())]
}
