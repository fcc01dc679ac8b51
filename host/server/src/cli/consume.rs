//! `consume`: reads messages of a topic, from all partitions or one, and follows if asked to; with a name it continues where it
//! stopped.

mod named;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use millrace_model::plain::plain;
use millrace_model::{Code, ConsumerName, TopicName};
use serde_json::Value;

use super::client::Client;
use super::failure::{Exit, Failure};
use super::output::Output;
use super::table::items;
use crate::units::time;

/// Messages of one request.
const FETCH_MESSAGES_MAX: u64 = 1_000;
/// Partitions that are followed over one connection.
const FETCH_PARTITIONS_MAX: usize = 1_000;
/// How long a follower lets the host wait.
const WAIT_MS_MAX: u64 = 20_000;
/// How long a follower keeps trying an absent host by default.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(300);
/// How long a follower waits before it returns to a host that is too busy.
const COME_BACK_PAUSE: Duration = Duration::from_secs(1);
/// Answers queued for printing; when the queue is full, followers wait.
const ANSWERS_WAITING_MAX: usize = 64;

const AFTER_HELP: &str = "\
Examples:
  millrace consume alerts                        everything so far, from all partitions
  millrace consume alerts --follow               and new messages, until interrupted
  millrace consume alerts --from latest --follow
  millrace consume alerts --from 2026-11-21T10:00:00Z
  millrace consume alerts --from -15m            messages of the last 15 minutes
  millrace consume alerts --partition 2 --from 1000 --max 10 --json
  millrace consume alerts --skip-damaged
  millrace consume alerts --as billing           continue where this consumer stopped
  millrace consume alerts --as billing --follow

Each line is PARTITION/OFFSET, key, value; - means none. At a terminal, control characters
are escaped (\\n, \\x1b, \\u{202e}); in a pipe keys and values are written unchanged, separated by tabs.
With --json each line is the message exactly as the HTTP API returns it.

With --as the host stores the consumer's position: messages written to standard output are committed, also when interrupted,
and uncommitted ones are delivered again. One reader is active at a time. In a pipe, a message counts as written once the pipe has accepted it: use --max 5 rather than
`| head -5`. `millrace consumer` lists, shows, resets and deletes consumers.";

/// Read messages of a topic
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    topic: TopicName,
    /// Read only this partition
    #[arg(long)]
    partition: Option<u32>,
    /// Continue where the consumer of this name stopped, in all partitions, and commit what was written; creates the consumer if needed
    #[arg(long = "as", value_name = "NAME", conflicts_with = "partition")]
    consumer: Option<ConsumerName>,
    /// With --as: how long a reader that disappeared keeps the next one waiting; a reader that exits cleanly does not [default: 30]
    #[arg(long, value_name = "SECONDS", requires = "consumer", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    lease: Option<u64>,
    /// Where to start: earliest, latest, an offset, or the first message at or after a time: 2026-11-21T10:00:00Z, 2026-11-21,
    /// timestamp:MILLISECONDS, or 15m or -15m (ago) [default: earliest]; with --as, where a new consumer starts
    #[arg(long, value_parser = begin, allow_hyphen_values = true)]
    from: Option<Begin>,
    /// Wait for new messages, until interrupted
    #[arg(long)]
    follow: bool,
    /// Skip damaged messages and report them; without this flag they end the command
    #[arg(long)]
    skip_damaged: bool,
    /// Stop after this many messages
    #[arg(long, value_name = "COUNT")]
    max: Option<u64>,
}

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    Earliest,
    Latest,
    Offset(u64),
    /// At the first message of this time, in milliseconds since the Unix epoch, or later.
    Time(u64),
}

impl fmt::Display for Begin {
    /// In the host's syntax.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Offset(offset) => offset.fmt(f),
            Self::Time(ms) => write!(f, "timestamp:{ms}"),
        }
    }
}

pub(super) fn begin(text: &str) -> Result<Begin, String> {
    if let Ok(offset) = text.parse() {
        return Ok(Begin::Offset(offset));
    }
    match text {
        "earliest" => Ok(Begin::Earliest),
        "latest" => Ok(Begin::Latest),
        _ => {
            let said = text.strip_prefix("timestamp:").unwrap_or(text);
            let wrong =
                |why| format!("{why}; or earliest, latest, an offset, timestamp:MILLISECONDS");
            time(said).map(Begin::Time).map_err(wrong)
        }
    }
}

pub(super) fn run(args: Args, client: &Client) -> Result<(), Failure> {
    let client = &match args.follow {
        true => client.patient(FOLLOW_PATIENCE),
        false => client.clone(),
    };
    let topic = client.get(&format!("/v1/topics/{}", args.topic))?;
    let mut ends = wanted(&args, &topic)?;
    let mut printer = Printer {
        output: client.output(),
        left: args.max.unwrap_or(u64::MAX),
    };
    check_offset(&args, &ends)?;
    if let Some(name) = &args.consumer {
        return named::run(&args, name, client, &ends, &mut printer);
    }
    for (&partition, ends) in &mut ends {
        ends.begin = ends.begin(&args, client, partition)?;
    }
    if args.follow {
        follow(&args, client, &ends, &mut printer)
    } else {
        read(&args, client, &ends, &mut printer)
    }
}

/// An offset beyond the end of every partition is a mistake: nothing would be read, and it would look like an empty topic.
fn check_offset(args: &Args, ends: &BTreeMap<u64, Ends>) -> Result<(), Failure> {
    let Some(Begin::Offset(offset)) = args.from else {
        return Ok(());
    };
    let furthest = ends.values().map(|ends| ends.end).max().unwrap_or(0);
    if offset <= furthest {
        return Ok(());
    }
    let message = format!(
        "no partition of {} has reached offset {offset}: the longest one ends at {furthest}",
        args.topic
    );
    let failure = Failure::new(Exit::Unknown, Code::OffsetPastEnd.as_str(), message);
    Err(failure.with_hint(
        "`millrace topic show` shows the ends; write a time as 2026-11-21T10:00:00Z or timestamp:MILLISECONDS",
    ))
}

/// The partitions to read, with their current ends.
fn wanted(args: &Args, topic: &Value) -> Result<BTreeMap<u64, Ends>, Failure> {
    let of = |ends: &Value| {
        let number = |field: &str| ends[field].as_u64().unwrap_or(0);
        let (start, end) = (number("start"), number("end"));
        (
            number("partition"),
            Ends {
                start,
                end,
                begin: start,
            },
        )
    };
    let mut ends: BTreeMap<u64, Ends> = items(&topic["ends"]).iter().map(of).collect();
    if let Some(partition) = args.partition {
        ends.retain(|&number, _| number == u64::from(partition));
        if ends.is_empty() {
            let message = format!("topic {} has no partition {partition}", args.topic);
            return Err(Failure::new(Exit::Unknown, "unknown-partition", message)
                .with_hint("`millrace topic show` lists its partitions"));
        }
    }
    Ok(ends)
}

#[derive(Clone, Copy)]
struct Ends {
    start: u64,
    end: u64,
    /// Where to read from.
    begin: u64,
}

impl Ends {
    /// The position that `--from` means in this partition. An offset outside the kept range is moved inside, because partitions differ.
    fn begin(self, args: &Args, client: &Client, partition: u64) -> Result<u64, Failure> {
        match args.from.unwrap_or(Begin::Earliest) {
            Begin::Earliest => Ok(self.start),
            Begin::Latest => Ok(self.end),
            Begin::Offset(offset) => {
                if offset < self.start {
                    jumped(partition, offset, self.start);
                }
                if offset > self.end {
                    let end = self.end;
                    // Standard error may be closed; there is nothing to read anyway.
                    let note = format_args!(
                        "note: partition {partition} ends before offset {end}; there is no offset {offset} yet\n"
                    );
                    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), note);
                }
                Ok(offset.clamp(self.start, self.end))
            }
            Begin::Time(ms) => {
                let from = format!("timestamp:{ms}");
                let answer = client.get(&path(&args.topic, partition, &from, 1, 0))?;
                let first = items(&answer["messages"]).first();
                let first = first.unwrap_or(&Value::Null)["offset"].as_u64();
                Ok(first.unwrap_or(self.end).min(self.end))
            }
        }
    }
}

/// Reports missing messages, so that the reader knows.
fn jumped(partition: u64, from: u64, to: u64) {
    note(&format!(
        "note: partition {partition}: offsets {from} to {to} (exclusive) are no longer kept; continuing at {to}"
    ));
}

fn note(text: &str) {
    // Standard error may be closed; the messages are still printed.
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{text}\n"));
}

/// The offset to continue at if the failure says that the requested one is no longer kept; reports it.
fn start_after(
    failure: &Failure,
    topic: &TopicName,
    client: &Client,
    partition: u64,
    from: u64,
) -> Option<u64> {
    let Failure::Told { code, .. } = failure else {
        return None;
    };
    if code != "offset-not-kept" {
        return None;
    }
    let answer = client.get(&path(topic, partition, "earliest", 1, 0)).ok()?;
    let start = answer["start"].as_u64().filter(|&start| start > from)?;
    jumped(partition, from, start);
    Some(start)
}

/// Reads up to the ends as they were at the start.
fn read(
    args: &Args,
    client: &Client,
    ends: &BTreeMap<u64, Ends>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let total = ends.values().map(|ends| ends.end - ends.begin).sum::<u64>();
    let bar = bar(total.min(printer.left), printer);
    for (&partition, ends) in ends {
        let mut next = ends.begin;
        while next < ends.end && printer.left > 0 {
            let from = next.to_string();
            let answer = match client.get(&path(&args.topic, partition, &from, printer.left, 0)) {
                Ok(answer) => answer,
                Err(failure) => {
                    next = match start_after(&failure, &args.topic, client, partition, next) {
                        Some(start) => start,
                        None if args.skip_damaged => after_damage(failure, partition, next)?,
                        None => return Err(failure),
                    };
                    continue;
                }
            };
            let messages = items(&answer["messages"]).iter();
            let before_end = messages.filter(|m| m["offset"].as_u64() < Some(ends.end));
            printer.print(before_end)?;
            let after = answer["next"].as_u64().unwrap_or(ends.end);
            bar.inc(after.saturating_sub(next));
            // A host whose answers do not advance would keep us here forever.
            next = after.max(next + 1);
        }
    }
    bar.finish_and_clear();
    printer.output.flush()
}

/// The offset to continue at when nothing could be read from `from` on: skips removed messages, and damaged ones if told to. Any other
/// failure is returned.
fn past(failure: Failure, partition: u64, from: u64, skip_damaged: bool) -> Result<u64, Failure> {
    let Failure::Told { next, code, .. } = &failure else {
        return Err(failure);
    };
    match (code.as_str(), *next) {
        ("offset-not-kept", Some(start)) if start > from => {
            jumped(partition, from, start);
            Ok(start)
        }
        (_, Some(_)) if skip_damaged => after_damage(failure, partition, from),
        (_, Some(_)) => Err(failure.with_hint(
            "--skip-damaged skips it and reports it; `millrace damage list` shows all damage",
        )),
        _ => Err(failure),
    }
}

/// The failure that describes a problem in an answer.
fn problem(problem: &Value) -> (Option<u64>, Failure) {
    let text = |field: &str| problem[field].as_str().unwrap_or_default();
    let partition = problem["partition"].as_u64();
    let failure = Failure::new(Exit::Failed, text("code"), text("message"));
    (
        partition,
        failure.with_next(problem["next"].as_u64(), partition),
    )
}

/// The offset to continue at after unreadable messages; any other failure is returned.
fn after_damage(failure: Failure, partition: u64, from: u64) -> Result<u64, Failure> {
    match failure {
        Failure::Told {
            next: Some(next),
            message,
            ..
        } if next > from => {
            let message = plain(&message);
            note(&format!(
                "{partition}/{from}: {message}; continuing at {next}"
            ));
            Ok(next)
        }
        failure => Err(failure),
    }
}

fn bar(total: u64, printer: &Printer) -> ProgressBar {
    // At a terminal, the lines show progress enough.
    if printer.output.is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("reading {bar:32} {pos}/{len} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

fn path(topic: &TopicName, partition: u64, from: &str, left: u64, wait_ms: u64) -> String {
    let max = left.clamp(1, FETCH_MESSAGES_MAX);
    format!(
        "/v1/topics/{topic}/partitions/{partition}/messages?from={from}&max={max}&max_bytes=4194304&wait_ms={wait_ms}"
    )
}

/// Reads until interrupted, from all partitions as messages arrive.
fn follow(
    args: &Args,
    client: &Client,
    ends: &BTreeMap<u64, Ends>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let (sender, answers) = mpsc::sync_channel(ANSWERS_WAITING_MAX);
    let places: Vec<(u64, u64)> = ends.iter().map(|(&p, ends)| (p, ends.begin)).collect();
    let follows_all = args.partition.is_none();
    let count = places.len() as u64;
    for places in places.chunks(FETCH_PARTITIONS_MAX) {
        let is_last = places.last().is_some_and(|(last, _)| *last + 1 == count);
        let follower = Follower {
            topic: args.topic.clone(),
            client: client.clone(),
            skip_damaged: args.skip_damaged,
            places: places.iter().copied().collect(),
            takes_new: follows_all && is_last,
        };
        follower.begin(sender.clone());
    }
    drop(sender);
    for answer in answers {
        printer.print(answer?.iter())?;
        printer.output.flush()?;
        if printer.left == 0 {
            break;
        }
    }
    Ok(())
}

type Answers = mpsc::SyncSender<Result<Vec<Value>, Failure>>;

/// Follows neighbouring partitions over one connection.
#[derive(Clone)]
struct Follower {
    topic: TopicName,
    client: Client,
    skip_damaged: bool,
    /// The position in each partition.
    places: BTreeMap<u64, u64>,
    /// Whether it takes on partitions that are added later.
    takes_new: bool,
}

impl Follower {
    /// Does not wait for the thread: one that waits at the host for a message would keep us from exiting.
    fn begin(self, to: Answers) {
        thread::spawn(move || self.keep_reading(&to));
    }

    /// Reads new partitions from their start: in this follower as far as it has room, then in further ones.
    fn take_new(&mut self, count: u64, to: &Answers, next: &mut String) {
        let known = self
            .places
            .last_key_value()
            .map_or(0, |(&last, _)| last + 1);
        if !self.takes_new || count <= known {
            return;
        }
        self.places = places(next);
        let room = FETCH_PARTITIONS_MAX.saturating_sub(self.places.len()) as u64;
        let own = count.min(known + room);
        self.places.extend((known..own).map(|new| (new, 0)));
        *next = self.cursor();
        let mut begin = own;
        while begin < count {
            let end = count.min(begin + FETCH_PARTITIONS_MAX as u64);
            self.takes_new = false;
            let further = Self {
                places: (begin..end).map(|new| (new, 0)).collect(),
                takes_new: end == count,
                ..self.clone()
            };
            further.begin(to.clone());
            begin = end;
        }
    }

    fn keep_reading(mut self, to: &Answers) {
        let mut next = self.cursor();
        loop {
            let answer = match self.client.get(&self.path(&next)) {
                Ok(answer) => {
                    let took = self.took(&answer, &mut next);
                    if took.is_ok() {
                        let count = answer["partitions"].as_u64().unwrap_or(0);
                        self.take_new(count, to, &mut next);
                    }
                    took
                }
                Err(failure) if failure.asks_to_come_back() => {
                    thread::sleep(COME_BACK_PAUSE);
                    continue;
                }
                Err(failure) => self.went_past(failure, &mut next),
            };
            let stop = answer.is_err();
            if to.send(answer).is_err() || stop {
                return;
            }
        }
    }

    fn path(&self, from: &str) -> String {
        let first = self.places.first_key_value().map_or(0, |(&p, _)| p);
        let last = self.places.last_key_value().map_or(0, |(&p, _)| p);
        format!(
            "/v1/topics/{}/messages?partitions={first}-{last}&from={from}&max={FETCH_MESSAGES_MAX}&max_bytes=4194304&wait_ms={WAIT_MS_MAX}",
            self.topic
        )
    }

    fn cursor(&self) -> String {
        let place = |(partition, offset): (&u64, &u64)| format!("{partition}:{offset}");
        let places: Vec<String> = self.places.iter().map(place).collect();
        places.join(",")
    }

    /// The messages of an answer; skips what could not be read next to them.
    fn took(&mut self, answer: &Value, next: &mut String) -> Result<Vec<Value>, Failure> {
        if let Some(further) = answer["next"].as_str() {
            further.clone_into(next);
        }
        let problems = items(&answer["problems"]);
        if !problems.is_empty() {
            self.places = places(next);
            for one in problems {
                self.go_past(problem(one).1)?;
            }
            *next = self.cursor();
        }
        Ok(items(&answer["messages"]).to_vec())
    }

    /// Handles an answer without any readable messages.
    fn went_past(&mut self, failure: Failure, next: &mut String) -> Result<Vec<Value>, Failure> {
        self.places = places(next);
        self.go_past(failure)?;
        *next = self.cursor();
        Ok(Vec::new())
    }

    /// Skips what cannot be read, if allowed.
    fn go_past(&mut self, failure: Failure) -> Result<(), Failure> {
        let Failure::Told {
            partition: Some(partition),
            ..
        } = failure
        else {
            return Err(failure);
        };
        let from = self.places.get(&partition).copied().unwrap_or(0);
        let to = past(failure, partition, from, self.skip_damaged)?;
        self.places.insert(partition, to);
        Ok(())
    }
}

/// Reads `PARTITION:OFFSET,…`.
fn places(text: &str) -> BTreeMap<u64, u64> {
    let place = |place: &str| {
        let (partition, offset) = place.split_once(':')?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    };
    text.split(',').filter_map(place).collect()
}

struct Printer {
    output: Output,
    /// Messages that may still be printed.
    left: u64,
}

impl Printer {
    fn print<'a>(&mut self, messages: impl Iterator<Item = &'a Value>) -> Result<(), Failure> {
        for message in messages {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            if self.output.is_json() {
                self.output.json_line(message)?;
                continue;
            }
            let (partition, offset) = (&message["partition"], &message["offset"]);
            let place = format!("{partition}/{offset}");
            let (key, value) = (part(message, "key"), part(message, "value"));
            self.output
                .row(&[Some(&place), key.as_deref(), value.as_deref()])?;
        }
        Ok(())
    }
}

/// The key or the value of a message as text; empty if there is none.
fn part(message: &Value, name: &str) -> Option<String> {
    match &message[format!("{name}_base64")] {
        Value::String(encoded) => Some(format!("base64:{encoded}")),
        _ => match &message[name] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_takes_new_partitions_on_and_reads_them_from_their_start() {
        let client = Client::new("http://127.0.0.1:1", Default::default(), false, None).unwrap();
        let (to, _answers) = mpsc::sync_channel(1);
        let mut follower = Follower {
            topic: TopicName::parse("orders").unwrap(),
            client,
            skip_damaged: false,
            places: places("0:7,1:9"),
            takes_new: true,
        };
        let mut next = "0:8,1:9".to_owned();
        follower.take_new(2, &to, &mut next);
        follower.take_new(0, &to, &mut next);
        assert_eq!(next, "0:8,1:9", "an older host says nothing of them");
        follower.take_new(4, &to, &mut next);
        assert_eq!(next, "0:8,1:9,2:0,3:0");
        assert!(
            follower
                .path(&next)
                .contains("?partitions=0-3&from=0:8,1:9,2:0,3:0&")
        );
        follower.takes_new = false;
        follower.take_new(9, &to, &mut next);
        assert_eq!(next, "0:8,1:9,2:0,3:0");
    }

    #[test]
    fn where_to_begin_is_understood_in_every_form() {
        assert_eq!(begin("earliest"), Ok(Begin::Earliest));
        assert_eq!(begin("latest"), Ok(Begin::Latest));
        assert_eq!(begin("17"), Ok(Begin::Offset(17)));
        let moment = begin("2026-11-21T10:00:00Z");
        assert_eq!(moment, Ok(Begin::Time(1_795_255_200_000)));
        for time in [
            "-15m",
            "15m",
            "2026-11-21",
            "timestamp:1795255200000",
            "now",
        ] {
            assert!(matches!(begin(time), Ok(Begin::Time(_))), "{time}");
        }
        for wrong in ["", "yesterday", "-5", "--15m", "timestamp:1795255200"] {
            assert!(begin(wrong).is_err(), "{wrong}");
        }
    }
}
