//! `dlq`: finds dead letters, shows, edits, tries and redrives them, and shows the audit trail.

mod find;
mod show;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_broker::MessagePlace;
use millrace_model::ProcessorName;
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use find::{Find, NARROWING, query};

const LIST_HELP: &str = "\
Examples:
  millrace dlq list classify --class quarry-blast --since 2h
  millrace dlq list classify --text 'no such region' --header tenant=acme
  millrace dlq list classify --group";

const REDRIVE_HELP: &str = "\
With --rate the command runs until all are sent; Ctrl-C stops it between two transactions, and nothing is sent twice.
A message that was redriven three times and failed each time is skipped, unless it is named or --again is given.

Examples:
  millrace dlq redrive classify --class timeout --dry-run --revision 7
  millrace dlq redrive classify --class timeout --limit 1000 --rate 50
  millrace dlq redrive classify --all
  millrace dlq redrive classify quakes.classify.dlq/0/17";

const EDIT_HELP: &str = "\
The dead letter itself stays unchanged; `dlq audit` shows who edited what.

Examples:
  millrace dlq edit classify quakes.classify.dlq/0/17 --value '{\"mag\":4.1}'
  millrace dlq edit classify quakes.classify.dlq/0/17 --value-file fixed.bin --header schema=2";

/// Manage dead letters
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List the dead letters of a processor, or count them in groups
    #[command(after_help = LIST_HELP)]
    List {
        /// The processor's name
        processor: ProcessorName,
        #[command(flatten)]
        find: Find,
        /// Include those that were already redriven
        #[arg(long)]
        redriven: bool,
        /// Count them by class, cause and revision
        #[arg(long)]
        group: bool,
        /// Maximum number
        #[arg(long, default_value_t = 100)]
        max: usize,
    },
    /// Show a dead letter with all its evidence
    #[command(after_help = "Example:\n  millrace dlq show classify quakes.classify.dlq/0/17")]
    Show {
        /// The processor's name
        processor: ProcessorName,
        /// As shown by `dlq list`: TOPIC/PARTITION/OFFSET
        dead_letter: MessagePlace,
    },
    /// Send dead letters again, to this processor only; or try it with --dry-run
    #[command(after_help = REDRIVE_HELP)]
    Redrive(Box<RedriveArgs>),
    /// Edit a dead letter and send it again
    #[command(after_help = EDIT_HELP)]
    Edit(EditArgs),
    /// Show the audit trail of a processor's dead letters: what was done, when, and by whom as claimed
    #[command(after_help = "Example:\n  millrace dlq audit classify")]
    Audit {
        /// The processor's name
        processor: ProcessorName,
        /// Continue here: the position that an earlier answer printed
        #[arg(long, value_name = "PLACE")]
        from: Option<MessagePlace>,
        /// Maximum number
        #[arg(long, default_value_t = 100)]
        max: usize,
    },
}

#[derive(clap::Args)]
pub(super) struct RedriveArgs {
    /// The processor's name
    processor: ProcessorName,
    /// As shown by `dlq list`: TOPIC/PARTITION/OFFSET
    #[arg(conflicts_with_all = NARROWING, conflicts_with = "from")]
    dead_letters: Vec<MessagePlace>,
    /// All that were not redriven yet
    #[arg(long, conflicts_with_all = NARROWING, conflicts_with = "dead_letters")]
    all: bool,
    #[command(flatten)]
    find: Find,
    /// Maximum number to send
    #[arg(long, value_name = "COUNT", conflicts_with = "dead_letters")]
    limit: Option<NonZeroUsize>,
    /// Maximum number per second
    #[arg(long, value_name = "PER_SECOND", value_parser = one_or_more)]
    rate: Option<NonZeroU32>,
    /// Include those that were redriven three times and failed each time
    #[arg(long)]
    again: bool,
    /// Send nothing: call a revision with them, and show what it would do
    #[arg(long, conflicts_with_all = ["rate", "again"])]
    dry_run: bool,
    /// The revision to call [default: the current one]
    #[arg(long, value_name = "NUMBER", requires = "dry_run")]
    revision: Option<u32>,
}

#[derive(clap::Args)]
pub(super) struct EditArgs {
    /// The processor's name
    processor: ProcessorName,
    /// As shown by `dlq list`: TOPIC/PARTITION/OFFSET
    dead_letter: MessagePlace,
    /// A new value
    #[arg(long)]
    value: Option<String>,
    /// A new value: the bytes of this file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    value_file: Option<PathBuf>,
    /// A new key
    #[arg(long)]
    key: Option<String>,
    /// Remove the key
    #[arg(long, conflicts_with = "key")]
    no_key: bool,
    /// Set a header, replacing those of the same name
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// Remove the headers of this name
    #[arg(long = "remove-header", value_name = "NAME")]
    remove_headers: Vec<String>,
}

pub(super) fn run(verb: Verb, client: &Client) -> Result<(), Failure> {
    let mut out = client.output();
    match verb {
        Verb::List {
            processor,
            find,
            redriven,
            group,
            max,
        } => {
            let mut fields = find.fields();
            fields.insert("max".to_owned(), json!(max));
            let redriven = if redriven { "also" } else { "no" };
            fields.insert("redriven".to_owned(), json!(redriven));
            let (groups, shown): (_, fn(&Value) -> String) = match group {
                true => ("/groups", show::groups),
                false => ("", show::letters),
            };
            let path = path(&processor, groups);
            out.answer(&client.get(&format!("{path}?{}", query(&fields)))?, shown)
        }
        Verb::Show {
            processor,
            dead_letter,
        } => {
            let letter = client.get(&path(&processor, &format!("/{dead_letter}")))?;
            out.answer(&letter, show::letter)
        }
        Verb::Redrive(args) => redrive(&args, client, &mut out),
        Verb::Edit(args) => edit(&args, client, &mut out),
        Verb::Audit {
            processor,
            from,
            max,
        } => {
            let from = from.map_or_else(String::new, |from| format!("&from={from}"));
            let path = path(&processor, &format!("/audit?max={max}{from}"));
            out.answer(&client.get(&path)?, show::audit)
        }
    }
}

fn path(processor: &ProcessorName, rest: &str) -> String {
    format!("/v1/processors/{processor}/dead-letters{rest}")
}

fn redrive(args: &RedriveArgs, client: &Client, out: &mut Output) -> Result<(), Failure> {
    let mut body = which(args)?;
    if args.dry_run {
        body.insert("revision".to_owned(), json!(args.revision));
        let path = path(&args.processor, "/dry-run");
        let answer = client.send(Method::POST, &path, &Value::Object(body))?;
        return out.answer(&answer, show::dry_run);
    }
    body.insert("again".to_owned(), json!(args.again));
    body.insert("per_second".to_owned(), json!(args.rate));
    let done = redrive_to_the_end(args, client, body)?;
    out.answer(&done, |done| {
        let (sent, already, skipped) = (&done["sent"], &done["already"], &done["skipped"]);
        let not_read = match done["not_read"].as_u64() {
            Some(count @ 1..) => format!(
                "\n{count} stay where they are: they come from topics that {} no longer reads",
                args.processor
            ),
            _ => String::new(),
        };
        let left = match skipped.as_u64() {
            Some(1..) => format!(
                "\n{skipped} were skipped: they failed after three redrives; --again sends them too"
            ),
            _ => String::new(),
        };
        format!(
            "{sent} dead letters were redriven to {}; {already} had already been redriven{left}{not_read}{}",
            args.processor,
            rests(&args.processor, client)
        )
    })
}

fn one_or_more(text: &str) -> Result<NonZeroU32, String> {
    let number = text.parse();
    number.map_err(|_| "write a whole number, 1 or more".to_owned())
}

/// A note for a paused processor, which takes redriven messages only after it is resumed; empty
/// otherwise.
fn rests(processor: &ProcessorName, client: &Client) -> String {
    let status = client.get(&path(processor, "").replace("/dead-letters", ""));
    match status.is_ok_and(|status| status["paused"] == true) {
        false => String::new(),
        true => format!(
            "\n{processor} is paused: they wait until `millrace processor resume {processor}`"
        ),
    }
}

/// The selection of dead letters in the host's format.
fn which(args: &RedriveArgs) -> Result<Map<String, Value>, Failure> {
    let mut fields = args.find.fields();
    if !args.dead_letters.is_empty() {
        let place = |place: &MessagePlace| json!({"topic": place.topic, "partition": place.partition, "offset": place.offset});
        let places: Vec<Value> = args.dead_letters.iter().map(place).collect();
        return Ok(Map::from_iter([("dead_letters".to_owned(), json!(places))]));
    }
    if !args.find.is_said() && !args.all {
        return Err(Failure::usage("no dead letters are selected")
            .with_hint("name some, filter them (such as --class timeout), or use --all"));
    }
    if let Some(limit) = args.limit {
        fields.insert("max".to_owned(), json!(limit));
    }
    Ok(Map::from_iter([("filter".to_owned(), json!(fields))]))
}

/// A paced redrive is answered in parts: repeats the request until there are no more, and adds the results up.
fn redrive_to_the_end(
    args: &RedriveArgs,
    client: &Client,
    mut body: Map<String, Value>,
) -> Result<Value, Failure> {
    let path = path(&args.processor, "/redrive");
    let count = |answer: &Value, field: &str| answer[field].as_u64().unwrap_or_default();
    let mut total = client.send(Method::POST, &path, &Value::Object(body.clone()))?;
    let started_at = total["started_at"].clone();
    while !total["next"].is_null() {
        let sent = count(&total, "sent");
        let left = args
            .limit
            .map(|limit| (limit.get() as u64).saturating_sub(sent));
        if left == Some(0) {
            break;
        }
        let filter = &mut body["filter"];
        filter["from"] = total["next"].take();
        if filter["until"].is_null() {
            // Messages that fail again meanwhile are left to the next redrive.
            filter["until"] = started_at.clone();
        }
        if let Some(left) = left {
            filter["max"] = json!(left);
        }
        let more = client.send(Method::POST, &path, &Value::Object(body.clone()))?;
        for field in ["sent", "already", "skipped", "not_read"] {
            total[field] = json!(count(&total, field) + count(&more, field));
        }
        total["next"] = more["next"].clone();
    }
    Ok(total)
}

fn edit(args: &EditArgs, client: &Client, out: &mut Output) -> Result<(), Failure> {
    let mut body = Map::new();
    if let Some(value) = &args.value {
        body.insert("value".to_owned(), json!(value));
    }
    if let Some(file) = &args.value_file {
        let read = std::fs::read(file);
        let bytes =
            read.map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
        body.insert("value_base64".to_owned(), json!(STANDARD.encode(bytes)));
    }
    if args.no_key || args.key.is_some() {
        body.insert("key".to_owned(), json!(args.key));
    }
    let mut headers = Vec::new();
    for header in &args.headers {
        let Some((name, value)) = header.split_once('=') else {
            return Err(Failure::usage(format!("--header {header} has no value"))
                .with_hint("write NAME=VALUE"));
        };
        headers.push(json!([name, value]));
    }
    body.insert("header_list".to_owned(), Value::Array(headers));
    body.insert("remove_headers".to_owned(), json!(args.remove_headers));
    let path = path(&args.processor, &format!("/{}/edit", args.dead_letter));
    let answer = client.send(Method::POST, &path, &Value::Object(body))?;
    out.answer(&answer, |_| {
        format!(
            "{} was edited and sent again to {}{}",
            args.dead_letter,
            args.processor,
            rests(&args.processor, client)
        )
    })
}
