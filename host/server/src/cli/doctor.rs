//! `doctor`: reports the state of a store and what to do about it. Reads only, unless told to repair a data directory.

mod monitoring;
mod stores;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use millrace_local::Cipher;
use millrace_local::examine::{ExamineError, Finding, Report, Severity, examine_with};
use millrace_local::repair::{Done, RepairError, plan, repair};
use millrace_model::{Clock, Offset, SystemClock};
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::output::Output;
use super::table::table;
use crate::config::Config;
use crate::encryption::encryption_keys;
use crate::engine::EngineKind;
use crate::engine::place::Place;

const AFTER_HELP: &str = "\
Examples:
  millrace doctor                          ./millrace-data, or MILLRACE_DATA_DIR
  millrace doctor backups/monday
  millrace doctor --findings               only problems
  millrace doctor --json | jq '.findings[] | select(.severity == \"damage\")'
  millrace doctor --repair                 what a repair would do, and what it would lose
  millrace doctor --repair --yes           repairs; files in the way are moved to quarantine/
  millrace doctor postgres://millrace@db/queue    a database, with #SCHEMA if that is not millrace
  millrace doctor config:millrace.toml     the store of the host with this configuration
  millrace doctor --monitoring http://127.0.0.1:8222     a NATS server

No host may run on a directory meanwhile. The doctor reads every byte of every segment and changes nothing without --repair --yes. Even
that removes nothing. Hosts may run on a database or a NATS server.
Exit codes: 0 no damage and no faults, 1 some were found, or it could not be read, 2 usage, 3 no such store, 4 refused, 5 it cannot be reached, 6 a host is running on it.";

/// Name of the stream of a store on NATS.
const STREAM_DEFAULT: &str = "millrace";
/// May name the file with the keys of a data directory.
const KEY_FILE_VARIABLE: &str = "MILLRACE_ENCRYPTION_KEY_FILE";
/// How a NATS server is examined.
const MONITORING_HINT: &str = "use `millrace doctor --monitoring http://SERVER:8222`";

/// Examine a data directory, a database or a NATS server
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The data directory, or another store: postgres://…, config:FILE [default: millrace-data]
    #[arg(env = "MILLRACE_DATA_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// List only problems, and count the rest
    #[arg(long)]
    findings: bool,
    /// Show what a repair would do
    #[arg(long)]
    repair: bool,
    /// Do it
    #[arg(long, requires = "repair")]
    yes: bool,
    /// The keys of an encrypted directory: journal and modules are then examined, too [default: those
    /// of MILLRACE_ENCRYPTION_KEY_FILE]
    // Not `env` of clap: the variable is for whatever is examined, and forbids nothing.
    #[arg(long, value_name = "FILE")]
    encryption_key_file: Option<PathBuf>,
    /// Examine the NATS server with this monitoring port instead
    #[arg(long, value_name = "URL", conflicts_with_all = ["repair", "encryption_key_file"])]
    monitoring: Option<String>,
    /// The stream of the store on that server
    #[arg(long, value_name = "NAME", requires = "monitoring", default_value = STREAM_DEFAULT)]
    stream: String,
}

pub(super) fn run(args: Args, as_json: bool) -> Result<(), Failure> {
    if let Some(address) = &args.monitoring {
        let found = monitoring::examine(address, &args.stream)?;
        let store = crate::engine::shown(address);
        return stores::report(&store, &found, args.findings, as_json);
    }
    let mut dir = args.dir.clone();
    let mut of_place = None;
    if let Some(text) = args.dir.as_deref().and_then(Path::to_str) {
        refuse_servers(text)?;
        if Place::is_one(text) {
            let place = Place::parse(text).map_err(|error| Failure::usage(error.to_string()))?;
            if place.kind() == EngineKind::Jetstream {
                return Err(by_monitoring());
            }
            if let Some(options) = place.database_options() {
                refuse_for_databases(&args)?;
                return stores::database(&place, options, args.findings, as_json);
            }
            dir = Some(place.directory().to_owned());
            of_place = place.keys();
        }
    }
    let dir = dir.unwrap_or_else(|| Config::default().data_dir);
    let variable = std::env::var_os(KEY_FILE_VARIABLE).filter(|file| !file.is_empty());
    let file = args
        .encryption_key_file
        .or_else(|| variable.map(PathBuf::from));
    let keys = match (&file, of_place) {
        (None, Some(keys)) => Some(keys),
        _ => encryption_keys(file.as_deref())?,
    };
    if args.yes {
        return repair_now(&dir, keys, as_json);
    }
    let bar = bar();
    let report = examine_with(&dir, keys, &mut |reached| {
        bar.set_length(reached.bytes_total);
        bar.set_position(reached.bytes);
    });
    bar.finish_and_clear();
    let report = report.map_err(not_examined)?;
    let planned = args.repair.then(|| plan(&report));
    Output::new(as_json).answer(&shown(&report, planned.as_deref()), |_| match &planned {
        None => for_people(&report, args.findings),
        Some(planned) => {
            let found = for_people(&report, args.findings);
            format!("{found}\n\n{}", repairs(planned, false))
        }
    })?;
    match report.worst() {
        Severity::Damage => Err(damaged(&report)),
        Severity::Ok | Severity::Note => Ok(()),
    }
}

/// A server is no store that could be opened.
fn refuse_servers(text: &str) -> Result<(), Failure> {
    let is_server = ["nats://", "tls://", "ws://", "wss://"]
        .into_iter()
        .any(|scheme| text.starts_with(scheme));
    match is_server {
        true => Err(by_monitoring()),
        false => Ok(()),
    }
}

fn by_monitoring() -> Failure {
    let message =
        "a NATS server is examined by its monitoring port, not by its address for clients";
    Failure::usage(message).with_hint(MONITORING_HINT)
}

fn refuse_for_databases(args: &Args) -> Result<(), Failure> {
    let given = [
        (args.repair, "--repair"),
        (args.encryption_key_file.is_some(), "--encryption-key-file"),
    ];
    match given.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, flag)) => Err(Failure::usage(format!(
            "{flag} is for data directories; the doctor only reads a database"
        ))
        .with_hint("leave it out; each finding says what to do")),
        None => Ok(()),
    }
}

fn repair_now(dir: &Path, keys: Option<Arc<Cipher>>, as_json: bool) -> Result<(), Failure> {
    let bar = bar();
    let done = repair(dir, keys, SystemClock::new().wall(), &mut |reached| {
        bar.set_length(reached.bytes_total);
        bar.set_position(reached.bytes);
    });
    bar.finish_and_clear();
    let done = done.map_err(|error| match error {
        RepairError::Examine(error) => not_examined(error),
        error @ (RepairError::Rebuild(_) | RepairError::Encrypted { .. }) => {
            Failure::new(Exit::Refused, "not-repaired", error.to_string())
        }
        error @ RepairError::Io { .. } => Failure::failed(error.to_string()),
    })?;
    let shown: Vec<Value> = done.iter().map(one_repair).collect();
    let answer = json!({"data_dir": dir.display().to_string(), "repaired": shown});
    Output::new(as_json).answer(&answer, |_| repairs(&done, true))
}

fn repairs(all: &[Done], are_done: bool) -> String {
    let row = |one: &Done| {
        let lost = one.lost.as_ref();
        let lost = lost.map_or_else(String::new, |lost| format!("\n→ lost: {lost}"));
        vec![name(&one.place), format!("{}{lost}", one.what)]
    };
    let headings = ["WHERE", if are_done { "DONE" } else { "A REPAIR WOULD" }];
    let rows = all.iter().map(row).collect();
    let text = table(&headings, rows, "there is nothing to repair");
    match (all.is_empty(), are_done) {
        (true, _) => text,
        (false, false) => {
            format!("{text}\n\nnothing was changed; add --yes to do it. Copy the directory first")
        }
        (false, true) => {
            format!(
                "{text}\n\nnothing was removed; files in the way are now in quarantine/. Run the doctor again"
            )
        }
    }
}

fn one_repair(one: &Done) -> Value {
    json!({"place": one.place.display().to_string(), "what": one.what, "lost": one.lost})
}

/// A progress bar on standard error; hidden if that is not a terminal.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("examining {bar:32} {bytes}/{total_bytes} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

fn not_examined(error: ExamineError) -> Failure {
    let (exit, code, hint) = match &error {
        ExamineError::NoSuchDirectory { .. } | ExamineError::NotADataDirectory { .. } => (
            Exit::Unknown,
            "no-data-directory",
            "name the directory that `millrace serve` uses as --data-dir",
        ),
        ExamineError::InUse { .. } => (
            Exit::DataDirInUse,
            "data-dir-in-use",
            "stop the host first: data that is being written would look like damage",
        ),
        ExamineError::Io { .. } => (
            Exit::Failed,
            "failed",
            "run this as the user that owns the data directory",
        ),
    };
    Failure::new(exit, code, error.to_string()).with_hint(hint)
}

fn damaged(report: &Report) -> Failure {
    let dir = report.dir.display();
    Failure::new(Exit::Failed, "damaged", format!("{dir} is damaged"))
        .with_hint("copy it before you change anything")
}

fn shown(report: &Report, planned: Option<&[Done]>) -> Value {
    json!({
        "data_dir": report.dir.display().to_string(),
        "worst": report.worst().as_str(),
        "findings": findings(report),
        "findings_dropped": report.findings_dropped,
        "repairs": planned.map(|planned| planned.iter().map(one_repair).collect::<Vec<_>>()),
    })
}

pub(super) fn findings(report: &Report) -> Vec<Value> {
    report.findings.iter().map(finding).collect()
}

fn finding(finding: &Finding) -> Value {
    let bytes = finding.bytes.as_ref();
    let offsets = finding.offsets.as_ref();
    json!({
        "severity": finding.severity.as_str(),
        "place": finding.place.display().to_string(),
        "bytes": bytes.map(|range| json!({"from": range.start, "to": range.end})),
        "topic": finding.topic,
        "partition": finding.partition,
        "offsets": offsets.map(|range| json!({"from": range.start, "to": known_end(range)})),
        "meaning": finding.meaning,
        "advice": finding.advice,
    })
}

fn known_end(range: &Range<Offset>) -> Option<Offset> {
    (range.end < Offset::MAX).then_some(range.end)
}

pub(super) fn for_people(report: &Report, findings_only: bool) -> String {
    let row = |finding: &Finding| {
        let what = match &finding.advice {
            Some(advice) => format!("{}\n→ {advice}", finding.meaning),
            None => finding.meaning.clone(),
        };
        vec![finding.severity.as_str().to_owned(), place(finding), what]
    };
    let is_shown = |finding: &&Finding| !findings_only || finding.severity != Severity::Ok;
    let rows: Vec<_> = report.findings.iter().filter(is_shown).map(row).collect();
    let sound = report.findings.len() - rows.len();
    let mut text = table(&["", "WHERE", "WHAT"], rows, "nothing is wrong");
    if sound > 0 {
        text.push_str(&format!("\n{sound} places are sound"));
    }
    if report.findings_dropped > 0 {
        let more = report.findings_dropped;
        text.push_str(&format!("\nand {more} more findings"));
    }
    format!("{text}\n\n{}", verdict(report))
}

fn place(finding: &Finding) -> String {
    let mut text = name(&finding.place);
    if let Some(bytes) = &finding.bytes {
        text.push_str(&format!("\nbytes {}..{}", bytes.start, bytes.end));
    }
    match (&finding.topic, finding.partition) {
        (Some(topic), Some(partition)) => {
            text.push_str(&format!("\ntopic {topic}, partition {partition}"));
        }
        (Some(topic), None) => text.push_str(&format!("\ntopic {topic}")),
        _ => {}
    }
    if let Some(offsets) = &finding.offsets {
        let end = known_end(offsets).map_or_else(String::new, |end| end.to_string());
        text.push_str(&format!("\noffsets {}..{end}", offsets.start));
    }
    text
}

fn name(place: &Path) -> String {
    match place == Path::new(".") {
        true => "the directory".to_owned(),
        false => place.display().to_string(),
    }
}

fn verdict(report: &Report) -> String {
    let dir = report.dir.display();
    match report.worst() {
        Severity::Ok => format!("{dir} is sound"),
        Severity::Note => format!("{dir} is sound; the notes say what a start will clean up"),
        Severity::Damage => {
            format!("{dir} is damaged; nothing was changed. `--repair` shows what can be done")
        }
    }
}
