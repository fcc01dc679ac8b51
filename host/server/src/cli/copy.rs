//! `copy`: moves everything from one engine to another, while no host runs on either.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use millrace_engine::{AdoptError, CommitError, TopicError};
use millrace_local::OpenError;
use millrace_model::{Clock, SystemClock};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::backup::bar;
use super::failure::{Exit, Failure};
use super::output::Output;
use super::table::table;
use crate::copying::{Copied, Copy, CopyError, PartitionDigest, Side, Watcher, check_source};
use crate::engine::NotOpened;
use crate::engine::place::{Place, PlaceError};

const AFTER_HELP: &str = "\
Examples:
  millrace copy --from local:millrace-data --to postgres://millrace@db/queue
  millrace copy --from postgres://millrace@db/queue#millrace --to local:copied
  millrace copy --from local:plain --to local:encrypted --to-encryption-key-file keys
  millrace copy --from config:old.toml --to config:new.toml
  millrace copy --from postgres://millrace@db/queue --to nats://one:4222#millrace
  MILLRACE_COPY_TO=postgres://millrace:secret@db/queue millrace copy --from local:millrace-data

A store is local:DIR, postgres://… with #SCHEMA or nats://… with #STREAM if that is not millrace, or config:FILE, whose [engine] section says
where it is, and for NATS, whether the servers sync and how to log in. No host may run
on either. The target must be empty, or have what an earlier copy of the same source left: then the copy goes on. The source keeps what it has.
Messages keep their offsets, and everything else goes along: processors, routes, schedules, modules, progress, state, delayed messages. Idempotency
keys and names of producers do not. At the end both sides are compared.
Exit codes: 0 copied and compared, 1 failed, or something differs or is damaged, 2 usage, 3 no such source, 4 refused, 6 a host runs on one of them.";

/// Between two lines that tell how far the copy is, if standard error is no terminal.
const TOLD_INTERVAL: Duration = Duration::from_secs(10);
/// Differences that are listed.
const DIFFERENCES_MAX: usize = 100;

/// Copy everything from one engine to another
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The store to copy
    #[arg(
        long,
        value_name = "STORE",
        env = "MILLRACE_COPY_FROM",
        hide_env_values = true
    )]
    from: String,
    /// The store to copy to
    #[arg(
        long,
        value_name = "STORE",
        env = "MILLRACE_COPY_TO",
        hide_env_values = true
    )]
    to: String,
    /// The keys of an encrypted data directory to copy from
    #[arg(long, value_name = "FILE")]
    from_encryption_key_file: Option<PathBuf>,
    /// Encrypt the data directory to copy to
    #[arg(long, value_name = "FILE")]
    to_encryption_key_file: Option<PathBuf>,
}

pub(super) async fn run(args: Args, as_json: bool) -> Result<(), Failure> {
    let from = Place::parse(&args.from)
        .and_then(|place| place.with_keys(args.from_encryption_key_file.as_deref()));
    let from = from.map_err(|error| not_opened(error, "--from"))?;
    let to = Place::parse(&args.to)
        .and_then(|place| place.with_keys(args.to_encryption_key_file.as_deref()));
    let to = to.map_err(|error| not_opened(error, "--to"))?;
    if from.is(&to) {
        return Err(Failure::usage("--from and --to name the same store"));
    }
    if from.is_nested(&to) {
        let message = "one of --from and --to is a directory within the other";
        return Err(Failure::usage(message).with_hint("name a directory beside it"));
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let source = from.open(&clock).await;
    let source = source.map_err(|error| not_opened(error, "--from"))?;
    // Before the target is made: what is refused leaves nothing behind.
    let checked = check_source(&*source).await.map_err(broken_off);
    let opened = match checked {
        Ok(()) => to
            .open_or_make(&clock)
            .await
            .map_err(|error| not_opened(error, "--to")),
        Err(failure) => Err(failure),
    };
    let target = match opened {
        Ok(target) => target,
        Err(failure) => {
            source.close().await;
            return Err(failure);
        }
    };
    let progress = Progress::new(Arc::clone(&clock));
    let copy = Copy {
        source: &*source,
        target: &*target,
        name: from.name(),
        watcher: &progress,
        began_at: clock.wall(),
    };
    let copied = copy.run().await;
    progress.bar.finish_and_clear();
    target.close().await;
    source.close().await;
    let copied = copied.map_err(broken_off)?;
    let answer = shown(&from, &to, &copied);
    Output::new(as_json).answer(&answer, |_| for_people(&from, &to, &copied))?;
    match copied.is_whole() {
        true => Ok(()),
        false => Err(differs(&copied)),
    }
}

fn not_opened(error: PlaceError, flag: &str) -> Failure {
    let message = format!("{flag}: {error}");
    match &error {
        PlaceError::Unknown(_) | PlaceError::Hash | PlaceError::Memory | PlaceError::Config(_) => {
            Failure::usage(message)
        }
        PlaceError::NoDirectory(_) => Failure::new(Exit::Unknown, "no-data-directory", message)
            .with_hint("name the directory that `millrace serve` uses as --data-dir"),
        PlaceError::Strangers(_) => Failure::refused(message)
            .with_hint("nothing was changed; name a directory that is empty or does not exist"),
        PlaceError::NotOpened(NotOpened::Local(OpenError::InUse { .. })) => {
            Failure::new(Exit::DataDirInUse, "data-dir-in-use", message)
                .with_hint("stop the host first")
        }
        PlaceError::NotOpened(NotOpened::Postgres(millrace_postgres::OpenError::NoSchema(_))) => {
            Failure::new(Exit::Unknown, "no-schema", message)
                .with_hint("name it after the address, like postgres://db/queue#SCHEMA")
        }
        PlaceError::NotOpened(NotOpened::Jetstream(millrace_jetstream::OpenError::NoStream(_))) => {
            Failure::new(Exit::Unknown, "no-stream", message)
                .with_hint("name it after the address, like nats://host:4222#STREAM")
        }
        PlaceError::NotOpened(_) => Failure::refused(message),
    }
}

fn broken_off(error: CopyError) -> Failure {
    let message = error.to_string();
    match &error {
        CopyError::HostsRun { side, has_begun, .. } => {
            let host = Failure::new(Exit::DataDirInUse, "store-in-use", message);
            host.with_hint(match (side, has_begun) {
                (Side::Source, false) => "stop the hosts first",
                (Side::Target, false) => "stop the hosts, or name another store",
                (_, true) => "stop the hosts; what was copied stays, and the same command goes on",
            })
        }
        CopyError::NotEmpty { .. } => Failure::refused(message)
            .with_hint("nothing was changed; name a new directory, or a new schema as in postgres://db/queue#SCHEMA"),
        CopyError::Other { .. } => Failure::refused(message)
            .with_hint("the source has changed since the copy began: remove the target, and copy again"),
        CopyError::Outbox => Failure::refused(message)
            .with_hint("start a host until it has sent them, or delete them from the table outbox"),
        CopyError::Topic {
            error: AdoptError::Topic(TopicError::Commit(CommitError::NotDurable)),
            ..
        }
        | CopyError::Write(CommitError::NotDurable) => Failure::failed(message).with_hint(
            "if the servers run with sync_interval: always, name them by config:FILE, with synced = true in [engine.jetstream]",
        ),
        CopyError::Topic {
            error: AdoptError::Id { .. },
            ..
        }
        | CopyError::Adopt(AdoptError::Unsupported) => Failure::refused(message),
        CopyError::Topic { .. }
        | CopyError::Source(_)
        | CopyError::Target(_)
        | CopyError::Write(_)
        | CopyError::Adopt(_)
        | CopyError::Trim(_) => Failure::failed(message)
            .with_hint("what was copied stays; the same command goes on from there"),
    }
}

fn differs(copied: &Copied) -> Failure {
    if copied.compared.differences.is_empty() {
        return Failure::new(
            Exit::Failed,
            "damaged",
            "parts of the source are damaged, and are not in the target",
        )
        .with_hint("everything else is there; `millrace doctor` says more about the source");
    }
    Failure::new(
        Exit::Failed,
        "not-the-same",
        "the target is not the same as the source",
    )
    .with_hint("no host starts on it; remove it, and copy again")
}

fn partition(topic: &str, digest: &PartitionDigest) -> Value {
    json!({
        "topic": topic,
        "partition": digest.partition.partition.0,
        "messages": digest.messages,
        "start": digest.ends.start,
        "end": digest.ends.end,
        "sha256": digest.sha256.to_string(),
    })
}

fn shown(from: &Place, to: &Place, copied: &Copied) -> Value {
    let compared = &copied.compared;
    let partitions = compared.partitions.iter();
    let partitions = partitions.map(|(topic, digest)| partition(topic.spec.name.as_str(), digest));
    json!({
        "from": from.name(),
        "to": to.name(),
        "partitions": partitions.collect::<Vec<_>>(),
        "groups": compared.groups,
        "state_entries": compared.state_entries,
        "entries": compared.entries,
        "damaged": copied.damaged,
        "differences": compared.differences.iter().take(DIFFERENCES_MAX).collect::<Vec<_>>(),
    })
}

fn for_people(from: &Place, to: &Place, copied: &Copied) -> String {
    let compared = &copied.compared;
    let row = |(topic, digest): &(millrace_model::Topic, PartitionDigest)| {
        vec![
            topic.spec.name.to_string(),
            digest.partition.partition.to_string(),
            digest.messages.to_string(),
            format!("{} to {}", digest.ends.start, digest.ends.end),
            digest.sha256.short(),
        ]
    };
    let rows = compared.partitions.iter().map(row).collect();
    let headings = ["TOPIC", "PARTITION", "MESSAGES", "OFFSETS", "SHA-256"];
    let mut text = table(&headings, rows, "the source has no topics");
    for (what, lines) in [
        ("not the same", &compared.differences),
        ("damaged in the source", &copied.damaged),
    ] {
        let listed = lines.iter().take(DIFFERENCES_MAX);
        listed.for_each(|line| text.push_str(&format!("\n{what}: {line}")));
        if lines.len() > DIFFERENCES_MAX {
            text.push_str(&format!("\n{what}: {} more", lines.len() - DIFFERENCES_MAX));
        }
    }
    let messages = compared
        .partitions
        .iter()
        .map(|(_, digest)| digest.messages);
    let messages: u64 = messages.sum();
    let (groups, state, entries) = (compared.groups, compared.state_entries, compared.entries);
    let same = match copied.is_whole() {
        true => "everything is the same on both sides",
        false => "not everything is on both sides",
    };
    let (from, to) = (from.name(), to.name());
    text.push_str(&format!(
        "\n\ncopied {from} to {to}: {messages} messages, the progress and state of {groups} groups in partitions with {state} entries, \
         {entries} entries of the catalogue; {same}"
    ));
    text
}

/// Tells on standard error how far the copy is: a bar at a terminal, otherwise a line now and then.
struct Progress {
    bar: ProgressBar,
    clock: Arc<dyn Clock>,
    /// What is done now, and when it was last told, if it is told in lines.
    told: Option<Mutex<(String, Duration)>>,
}

impl Progress {
    fn new(clock: Arc<dyn Clock>) -> Self {
        let told = (String::new(), clock.monotonic());
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            bar: bar("{msg} {bar:32} {human_pos}/{human_len} {eta}"),
            told: (!is_terminal).then(|| Mutex::new(told)),
            clock,
        }
    }
}

impl Watcher for Progress {
    fn begins(&self, what: &str, steps: u64) {
        self.bar.set_message(what.to_owned());
        self.bar.set_length(steps);
        self.bar.set_position(0);
        if let Some(told) = &self.told {
            told.lock().0 = what.to_owned();
        }
    }

    fn advances(&self, steps: u64) {
        self.bar.inc(steps);
        let Some(told) = &self.told else { return };
        let mut told = told.lock();
        let now = self.clock.monotonic();
        if now.saturating_sub(told.1) >= TOLD_INTERVAL {
            told.1 = now;
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            // Nobody may be listening.
            let line = format_args!("{}: {done} of {all}\n", told.0);
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), line);
        }
    }
}
