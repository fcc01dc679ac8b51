//! `produce`: appends messages to a topic, from arguments, a file or standard input, in chunks of bounded size.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressStyle};
use millrace_model::bounds::MESSAGE_BYTES_MAX;
use millrace_model::{Clock, SystemClock, TopicName};
use serde_json::{Map, Value, json};

use super::client::Client;
use super::failure::{Exit, Failure};
use super::feed::{Feed, Next};
use super::output::Output;
use super::table::{cell, items};
use crate::text;
use crate::units::{duration_ms, time_ahead};

/// Messages per request; each request is one commit.
const CHUNK_MESSAGES_MAX: usize = 5_000;
/// Bytes per request, except for a single larger message.
const CHUNK_BYTES_MAX: usize = 4 << 20;
/// A chunk of an open pipe is sent when no further line has arrived for this long.
const LINGER: Duration = Duration::from_millis(150);
/// A chunk of an open pipe is sent at the latest when its first message has waited this long.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// How long to keep trying while the host is absent or busy, by default.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any message can be.
const LINE_BYTES_MAX: u64 = 2 * MESSAGE_BYTES_MAX as u64;

/// Maximum length of the user's idempotency key; each chunk's key adds its number.
const KEY_CHARS_MAX: usize = 200;

const AFTER_HELP: &str = "\
Examples:
  millrace produce orders hello world                        two messages
  millrace produce orders --key 17 --header source=shop '{\"item\":\"mill\"}'
  millrace produce reminders --delay 1h 'call back'          delivered in an hour
  millrace produce events --file events.txt                  one message per line
  generate | millrace produce events --ndjson --file -       each line: {\"key\":…,\"value\":…}

Lines end with LF or CR LF, which are not part of the message; the last line needs no line ending. A blank line is a message with an
empty value; with --ndjson it is skipped. Text is UTF-8, with or without a byte order mark; UTF-16 is refused.

Long inputs are sent in chunks, each committed as a whole; slow input is sent within a second. A chunk that is not
answered is sent again under its Idempotency-Key, so it takes effect once. If it finally fails, earlier chunks are
kept, and the error says at which line it begins. When interrupted, the command sends what it has read, or reports what it has not sent.
With --idempotency-key the same command can be repeated without adding anything twice. So that its chunks are the
same each time, it waits until each chunk is full, even if the input is slow.";

/// Append messages to a topic
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The topic
    topic: TopicName,
    /// The key of every message
    #[arg(long, conflicts_with = "ndjson")]
    key: Option<String>,
    /// A header of every message; repeat it for several
    #[arg(long = "header", value_name = "NAME=VALUE", conflicts_with = "ndjson")]
    headers: Vec<HeaderArg>,
    /// The partition [default: the topic's partitioner chooses]
    #[arg(long, conflicts_with = "ndjson")]
    partition: Option<u32>,
    /// Deliver every message at this time: 2026-11-21T10:00:00Z, 2026-11-21, milliseconds since the Unix epoch, or 15m (from now)
    #[arg(long, value_name = "TIME", value_parser = time_ahead, allow_hyphen_values = true, conflicts_with_all = ["ndjson", "delay"])]
    deliver_at: Option<u64>,
    /// Deliver every message this long after its arrival: 30s, 10m, 1h
    #[arg(long, value_name = "TIME", value_parser = duration_ms, conflicts_with = "ndjson")]
    delay: Option<u64>,
    /// Read messages from a file, one per line; - is standard input
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "values",
        required_unless_present = "values"
    )]
    file: Option<PathBuf>,
    /// Each line of the file is a message as JSON: {"key", "value", "headers", "timestamp", "partition", "deliver_at"}
    #[arg(long, requires = "file", conflicts_with = "values")]
    ndjson: bool,
    /// Name this input, so that the command can be repeated with the same name; a topic remembers it for a day
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<KeyArg>,
    /// Values, one message each
    #[arg(value_name = "VALUE")]
    values: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct HeaderArg(pub(super) String, pub(super) String);

impl FromStr for HeaderArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
        Ok(Self(name.to_owned(), value.to_owned()))
    }
}

/// The beginning of each chunk's key.
#[derive(Clone, Debug)]
struct KeyArg(String);

impl FromStr for KeyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"\\".contains(&byte);
        match !text.is_empty() && text.len() <= KEY_CHARS_MAX && text.bytes().all(is_plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "write 1 to {KEY_CHARS_MAX} visible ASCII characters without quotes and backslashes"
            )),
        }
    }
}

/// A unique key, from the randomness of the standard library's hash maps.
fn new_key() -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half())
}

pub(super) fn run(args: Args, client: &Client) -> Result<(), Failure> {
    let client = &client.patient(PATIENCE);
    // Checks the topic first, so that megabytes are not sent to a misspelt name.
    client.get(&format!("/v1/topics/{}", args.topic))?;
    let mut chunks = Chunks::new(&args, client);
    match &args.file {
        None => {
            for value in &args.values {
                chunks.add(value.as_bytes())?;
            }
        }
        Some(file) => read(file, &mut chunks)?,
    }
    chunks.send()?;
    chunks.summary()
}

fn read(file: &PathBuf, chunks: &mut Chunks<'_>) -> Result<(), Failure> {
    if file.as_os_str() == "-" {
        return lines(io::stdin(), &ProgressBar::no_length(), chunks);
    }
    let unreadable = |error| Failure::usage(format!("{} cannot be read: {error}", file.display()));
    let opened = File::open(file).map_err(unreadable)?;
    let about = opened.metadata().map_err(unreadable)?;
    if about.is_dir() {
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
    let bytes = about.len();
    let style = ProgressStyle::with_template("producing {bar:32} {bytes}/{total_bytes} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(bytes).with_style(style);
    lines(opened, &bar, chunks)
}

fn lines(
    input: impl Read + Send + 'static,
    bar: &ProgressBar,
    chunks: &mut Chunks<'_>,
) -> Result<(), Failure> {
    let mut feed = Feed::start(input, LINE_BYTES_MAX, &chunks.client.interrupt)?;
    let (mut number, mut head) = (0u64, Vec::new());
    loop {
        let line = match feed.next(chunks.patience())? {
            Next::Line(line) => line,
            Next::Idle => {
                chunks.send()?;
                continue;
            }
            Next::End => break,
            Next::Interrupted => {
                bar.finish_and_clear();
                return chunks.interrupted(number);
            }
        };
        let count = line.len();
        number += 1;
        bar.inc(count as u64);
        if line.last() != Some(&b'\n') && count as u64 == LINE_BYTES_MAX {
            return Err(Failure::refused(format!(
                "line {number} is longer than a message can be"
            )));
        }
        // Without a byte order mark, a short first line may not reveal the encoding.
        if head.len() < text::MARK_BYTES {
            head.extend_from_slice(&line);
            text::unmarked(&head).map_err(another_encoding)?;
        }
        let said = match number {
            1 => text::unmarked(&line).map_err(another_encoding)?,
            _ => &line[..],
        };
        chunks.line = number;
        chunks.add(text::without_end(said))?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn another_encoding(name: &str) -> Failure {
    let failure = Failure::usage(format!("the input is {name}, not UTF-8; nothing was sent"));
    failure.with_hint(text::SEND_UTF8)
}

/// The lines that wait to be sent, and the results so far.
struct Chunks<'a> {
    client: &'a Client,
    path: String,
    /// Key, headers and partition of every message; empty for lines that have their own.
    common: Option<Map<String, Value>>,
    body: Vec<u8>,
    count: usize,
    /// The input's current line, and the chunk's first line.
    line: u64,
    first_line: u64,
    output: Output,
    /// The beginning of each chunk's key.
    key: String,
    /// Whether the user chose the key and may repeat the command: then chunks are cut by content, not by timing.
    repeatable: bool,
    clock: SystemClock,
    /// When the chunk began.
    begun: Duration,
    sent: usize,
    requests: usize,
    /// Whether the user named the input: only then can an earlier command have sent it.
    is_named: bool,
    /// Messages that an earlier command had added.
    repeated: usize,
    /// Of these, how many are no longer kept.
    gone: usize,
    last_answer: Value,
}

impl<'a> Chunks<'a> {
    fn new(args: &Args, client: &'a Client) -> Self {
        Self {
            client,
            path: format!("/v1/topics/{}/messages", args.topic),
            common: (!args.ndjson).then(|| common(args)),
            body: Vec::new(),
            count: 0,
            line: 1,
            first_line: 1,
            output: client.output(),
            key: args
                .idempotency_key
                .as_ref()
                .map_or_else(new_key, |key| key.0.clone()),
            repeatable: args.idempotency_key.is_some(),
            clock: SystemClock::new(),
            begun: Duration::ZERO,
            sent: 0,
            requests: 0,
            is_named: args.idempotency_key.is_some(),
            repeated: 0,
            gone: 0,
            last_answer: Value::Null,
        }
    }

    fn add(&mut self, line: &[u8]) -> Result<(), Failure> {
        if self.body.is_empty() {
            self.first_line = self.line;
            self.begun = self.clock.monotonic();
        }
        match &self.common {
            None => self.body.extend_from_slice(line),
            Some(common) => write(&mut self.body, common, line)?,
        }
        self.body.push(b'\n');
        if self.common.is_none() && line.trim_ascii().is_empty() {
            // The line has no message, but the host counts lines as we do.
            return Ok(());
        }
        self.count += 1;
        let is_full = self.count == CHUNK_MESSAGES_MAX || self.body.len() >= CHUNK_BYTES_MAX;
        if is_full || !self.repeatable && self.waited() >= LINGER_MAX {
            self.send()?;
        }
        Ok(())
    }

    /// How long the chunk waits for more lines; `None` means without limit.
    fn patience(&self) -> Option<Duration> {
        let lingers = self.count > 0 && !self.repeatable;
        lingers.then(|| LINGER.min(LINGER_MAX.saturating_sub(self.waited())))
    }

    fn waited(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.begun)
    }

    /// Sends what was read, and reports where it was interrupted.
    fn interrupted(&mut self, last_line: u64) -> Result<(), Failure> {
        let message = if self.count > 0 && self.repeatable {
            // A chunk that is not full would be a different one the next time.
            self.unsent("because with --idempotency-key only full chunks are sent")
        } else {
            self.send()?;
            format!(
                "interrupted: {} messages were sent, all of the {last_line} lines that were read",
                self.sent
            )
        };
        self.summary()?;
        Err(Failure::new(Exit::Interrupted, "interrupted", message))
    }

    fn unsent(&self, why: &str) -> String {
        let (first, last) = (self.first_line, self.line);
        format!("interrupted: lines {first} to {last} were read and not sent, {why}")
    }

    fn send(&mut self) -> Result<(), Failure> {
        if self.count == 0 {
            return Ok(());
        }
        let body = std::mem::take(&mut self.body);
        let key = format!("\"{}-{}\"", self.key, self.requests);
        let lines = "application/x-ndjson";
        let answer = self.client.upload_once(&self.path, lines, &body, &key);
        let (answer, replayed) = answer.map_err(|failure| {
            if self.client.interrupt.is_wanted() {
                let message = self.unsent(&format!("because {failure}"));
                return Failure::new(Exit::Interrupted, "interrupted", message);
            }
            match self.first_line {
                1 => failure,
                first => failure.about(&format!("in the chunk that begins at line {first}")),
            }
        })?;
        let placed = items(&answer["placed"]);
        self.sent += placed.len();
        if self.is_named && replayed {
            self.repeated += placed.len();
            self.gone += placed.iter().filter(|place| place["gone"] == true).count();
        }
        self.requests += 1;
        self.count = 0;
        if self.output.is_json() {
            self.output.json_line(&answer)?;
        }
        self.last_answer = answer;
        Ok(())
    }

    fn summary(&mut self) -> Result<(), Failure> {
        if !self.output.is_json() {
            let line = match (self.sent, items(&self.last_answer["placed"])) {
                (sent, _) if self.repeated == sent && sent > 0 => {
                    format!("repeated: nothing was added; {} already there", were(sent))
                }
                (1, [place]) if !place["delayed"].is_null() => {
                    format!("1 message, delayed, id {}", cell(&place["delayed"]))
                }
                (1, [place]) => {
                    format!(
                        "1 message, partition {} offset {}",
                        place["partition"], place["offset"]
                    )
                }
                (sent, _) if self.requests == 1 => format!("{sent} messages in 1 commit"),
                (sent, _) => format!("{sent} messages in {} commits", self.requests),
            };
            let line = match self.repeated {
                0 => line,
                some if some == self.sent => line,
                some => format!("{line}; repeated: {} already there", were(some)),
            };
            let gone = match self.gone {
                0 => String::new(),
                gone => format!(", {gone} no longer kept: use a new key to add them again"),
            };
            self.output.line(&format!("{line}{gone}"))?;
        } else if self.requests == 0 {
            // A program that reads JSON gets some, even if there was nothing to send.
            self.output.json_line(&json!({"count": 0, "placed": []}))?;
        }
        self.output.flush()
    }
}

fn were(messages: usize) -> String {
    match messages {
        1 => "1 message was".to_owned(),
        more => format!("{more} messages were"),
    }
}

fn common(args: &Args) -> Map<String, Value> {
    let mut message = Map::new();
    if let Some(key) = &args.key {
        message.insert("key".to_owned(), json!(key));
    }
    if let Some(partition) = args.partition {
        message.insert("partition".to_owned(), json!(partition));
    }
    if let Some(deliver_at) = args.deliver_at {
        message.insert("deliver_at".to_owned(), json!(deliver_at));
    }
    if let Some(delay_ms) = args.delay {
        message.insert("delay_ms".to_owned(), json!(delay_ms));
    }
    if !args.headers.is_empty() {
        message.insert("header_list".to_owned(), header_list(&args.headers));
    }
    message
}

/// Headers as pairs, in the order given.
pub(super) fn header_list(headers: &[HeaderArg]) -> Value {
    let pair = |HeaderArg(name, value): &HeaderArg| json!([name, value]);
    headers.iter().map(pair).collect()
}

fn write(body: &mut Vec<u8>, common: &Map<String, Value>, value: &[u8]) -> Result<(), Failure> {
    let mut message = common.clone();
    match str::from_utf8(value) {
        Ok(text) => message.insert("value".to_owned(), json!(text)),
        Err(_) => message.insert("value_base64".to_owned(), json!(STANDARD.encode(value))),
    };
    serde_json::to_writer(body, &message).map_err(|error| Failure::failed(error.to_string()))
}
