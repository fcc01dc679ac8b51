//! `consume`: reads messages of a topic, of all partitions or one, and follows if asked.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;

use indicatif::{ProgressBar, ProgressStyle};
use millrace_model::TopicName;
use serde_json::{Value, json};

use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use super::table::{cell, items};

/// Messages of one request.
const FETCH_MESSAGES_MAX: u64 = 1_000;
/// Threads that follow; with more partitions than this, each follows several by turns.
const FOLLOWERS_MAX: usize = 32;
/// How long a follower of one partition lets the host wait.
const WAIT_MS_MAX: u64 = 20_000;
/// Answers that wait to be printed; followers wait when there are more.
const ANSWERS_WAITING_MAX: usize = 64;

const AFTER_HELP: &str = "\
Examples:
  millrace consume alerts                        what is there now, all partitions
  millrace consume alerts --follow               and what comes, until interrupted
  millrace consume alerts --from latest --follow
  millrace consume alerts --partition 2 --from 1000 --max 10 --json
  millrace consume alerts --skip-damaged

A line for people is PARTITION/OFFSET, key, value. With --json it is the message as the HTTP API gives it.";

/// Read messages of a topic
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    topic: TopicName,
    /// Only this partition
    #[arg(long)]
    partition: Option<u32>,
    /// Where to begin: earliest, latest or an offset
    #[arg(long, default_value = "earliest", value_parser = begin)]
    from: String,
    /// Wait for further messages, until interrupted
    #[arg(long)]
    follow: bool,
    /// Go on after messages that are damaged, saying so; without this they end the command
    #[arg(long)]
    skip_damaged: bool,
    /// Stop after so many messages
    #[arg(long, value_name = "COUNT")]
    max: Option<u64>,
}

fn begin(text: &str) -> Result<String, String> {
    match text {
        "earliest" | "latest" => Ok(text.to_owned()),
        number if number.parse::<u64>().is_ok() => Ok(text.to_owned()),
        _ => Err("say earliest, latest or an offset".to_owned()),
    }
}

pub(super) fn run(args: Args, client: &Client) -> Result<(), Failure> {
    let topic = client.get(&format!("/v1/topics/{}", args.topic))?;
    let ends = wanted(&args, &topic)?;
    let mut printer = Printer {
        output: client.output(),
        left: args.max.unwrap_or(u64::MAX),
    };
    if args.follow {
        follow(&args, client, &ends, &mut printer)
    } else {
        read(&args, client, &ends, &mut printer)
    }
}

/// The partitions to read, with their ends at this moment.
fn wanted(args: &Args, topic: &Value) -> Result<BTreeMap<u64, Ends>, Failure> {
    let of = |ends: &Value| {
        let number = |field: &str| ends[field].as_u64().unwrap_or(0);
        let (start, end) = (number("start"), number("end"));
        (number("partition"), Ends { start, end })
    };
    let mut ends: BTreeMap<u64, Ends> = items(&topic["ends"]).iter().map(of).collect();
    if let Some(partition) = args.partition {
        ends.retain(|&number, _| number == u64::from(partition));
        if ends.is_empty() {
            let message = format!("topic {} has no partition {partition}", args.topic);
            return Err(
                Failure::new(super::failure::Exit::Unknown, "unknown-partition", message)
                    .with_hint("`millrace topic show` lists its partitions"),
            );
        }
    }
    Ok(ends)
}

#[derive(Clone, Copy)]
struct Ends {
    start: u64,
    end: u64,
}

impl Ends {
    /// Where `--from` is, here. An offset outside what is kept is moved inside: partitions differ.
    fn begin(self, from: &str) -> u64 {
        match from {
            "earliest" => self.start,
            "latest" => self.end,
            offset => offset.parse().unwrap_or(0).clamp(self.start, self.end),
        }
    }
}

/// Reads up to the ends as they were when it began.
fn read(
    args: &Args,
    client: &Client,
    ends: &BTreeMap<u64, Ends>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let total = ends
        .values()
        .map(|ends| ends.end - ends.begin(&args.from))
        .sum::<u64>();
    let bar = bar(total.min(printer.left), printer);
    for (&partition, ends) in ends {
        let mut next = ends.begin(&args.from);
        while next < ends.end && printer.left > 0 {
            let path = path(&args.topic, partition, next, printer.left, 0);
            let answer = match client.get(&path) {
                Err(failure) if args.skip_damaged => {
                    next = after_damage(failure, partition, next)?;
                    continue;
                }
                answer => answer?,
            };
            let messages = items(&answer["messages"]).iter();
            let before_end = messages.filter(|m| m["offset"].as_u64() < Some(ends.end));
            printer.print(before_end)?;
            let after = answer["next"].as_u64().unwrap_or(ends.end);
            bar.inc(after.saturating_sub(next));
            // A host that does not move on would keep us here for ever.
            next = after.max(next + 1);
        }
    }
    bar.finish_and_clear();
    printer.output.flush()
}

/// Where to go on after messages that cannot be read; any other failure stays one.
fn after_damage(failure: Failure, partition: u64, from: u64) -> Result<u64, Failure> {
    match failure {
        Failure::Told {
            next: Some(next),
            message,
            ..
        } if next > from => {
            eprintln!("{partition}/{from}: {message}; going on from {next}");
            Ok(next)
        }
        failure => Err(failure),
    }
}

fn bar(total: u64, printer: &Printer) -> ProgressBar {
    // Lines on the terminal are progress enough.
    if printer.output.is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("reading {bar:32} {pos}/{len} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style)
}

fn path(topic: &TopicName, partition: u64, from: u64, left: u64, wait_ms: u64) -> String {
    let max = left.clamp(1, FETCH_MESSAGES_MAX);
    format!(
        "/v1/topics/{topic}/partitions/{partition}/messages?from={from}&max={max}&max_bytes=4194304&wait_ms={wait_ms}"
    )
}

/// Reads on until interrupted, each partition as it comes.
fn follow(
    args: &Args,
    client: &Client,
    ends: &BTreeMap<u64, Ends>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let (sender, answers) = mpsc::sync_channel(ANSWERS_WAITING_MAX);
    let follower = |(&partition, ends): (&u64, &Ends)| Follower {
        partition,
        next: ends.begin(&args.from),
    };
    let followers: Vec<Follower> = ends.iter().map(follower).collect();
    let share = followers.len().div_ceil(FOLLOWERS_MAX).max(1);
    for followers in followers.chunks(share) {
        let (topic, client) = (args.topic.clone(), client.clone());
        let skip_damaged = args.skip_damaged;
        let (mut followers, sender) = (followers.to_vec(), sender.clone());
        // Not waited for: whoever waits at the host for a message would keep us from ending.
        thread::spawn(move || {
            keep_reading(&topic, &client, skip_damaged, &mut followers, &sender);
        });
    }
    drop(sender);
    for answer in answers {
        printer.print(items(&answer?["messages"]).iter())?;
        printer.output.flush()?;
        if printer.left == 0 {
            break;
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Follower {
    partition: u64,
    next: u64,
}

type Answers = mpsc::SyncSender<Result<Value, Failure>>;

fn keep_reading(
    topic: &TopicName,
    client: &Client,
    skip_damaged: bool,
    followers: &mut [Follower],
    to: &Answers,
) {
    let wait_ms = WAIT_MS_MAX / followers.len() as u64;
    loop {
        for follower in &mut *followers {
            let path = path(topic, follower.partition, follower.next, u64::MAX, wait_ms);
            let answer = match client.get(&path) {
                Err(failure) if skip_damaged => {
                    let after = after_damage(failure, follower.partition, follower.next);
                    after.map(|next| json!({"messages": [], "next": next}))
                }
                answer => answer,
            };
            if let Ok(answer) = &answer {
                follower.next = answer["next"].as_u64().unwrap_or(follower.next);
            }
            let stop = answer.is_err();
            if to.send(answer).is_err() || stop {
                return;
            }
        }
    }
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
            let line = match self.output.is_json() {
                true => message.to_string(),
                false => for_people(message),
            };
            self.output.line(&line)?;
        }
        Ok(())
    }
}

fn for_people(message: &Value) -> String {
    let bytes = |name: &str| match &message[format!("{name}_base64")] {
        Value::String(encoded) => format!("base64:{encoded}"),
        _ => cell(&message[name]),
    };
    let (partition, offset) = (&message["partition"], &message["offset"]);
    format!("{partition}/{offset}\t{}\t{}", bytes("key"), bytes("value"))
}
