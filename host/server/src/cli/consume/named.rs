//! `consume --as`: continues where the consumer of that name stopped, in all partitions, and commits what was written to standard
//! output.
//!
//! Written but uncommitted messages are delivered again; committed messages were written. So a commit follows each flush, however the
//! command ends: the last message, an interrupt, a closed output, or a failure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use millrace_model::{Clock, Code, ConsumerName, SystemClock};
use serde_json::{Value, json};
use ureq::http::Method;

use super::{
    Args, COME_BACK_PAUSE, Ends, FETCH_MESSAGES_MAX, Printer, WAIT_MS_MAX, jumped, note, past,
    places, problem,
};
use crate::cli::client::{Client, escaped};
use crate::cli::failure::{Exit, Failure};
use crate::cli::feed::heed;
use crate::cli::table::items;

/// How long the lease lasts after this reader's last request, by default.
const LEASE_SECONDS: u64 = 30;
/// Longest time between commits while a slow reader takes the output.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Printed if the user does not wait for the end.
const TWICE: &str = "interrupted twice; the messages printed last may be delivered again";

/// What the command waits for.
enum Event {
    Answer(Result<Value, Failure>),
    Interrupted,
}

/// How far the messages of an answer were written.
#[derive(PartialEq, Eq)]
enum Wrote {
    All,
    /// The user wants to stop.
    Interrupted,
    /// The lease was lost meanwhile: the remaining messages are delivered again.
    Lost,
}

/// How reading ended.
#[derive(PartialEq, Eq)]
enum End {
    /// Everything that was asked for is written.
    Done,
    /// The user wants to stop.
    Interrupted,
}

pub(super) fn run(
    args: &Args,
    name: &ConsumerName,
    client: &Client,
    ends: &BTreeMap<u64, Ends>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let (sender, events) = mpsc::sync_channel(1);
    let interrupted = sender.clone();
    // The channel may be full of an answer; the second signal must not wait for that.
    let tell = move || drop(thread::spawn(move || interrupted.send(Event::Interrupted)));
    heed(client.interrupt.clone(), TWICE, tell)?;
    let mut reader = Reader {
        args,
        client,
        path: format!("/v1/topics/{}/consumers/{name}", args.topic),
        sender,
        events,
        clock: SystemClock::new(),
        lease: None,
        had_lease: false,
        at: BTreeMap::new(),
        written: BTreeMap::new(),
        committed_at: Duration::ZERO,
    };
    let ended = reader.read(ends, printer);
    let gave_back = reader.give_back();
    match ended {
        Ok(_) | Err(Failure::ClosedPipe) if gave_back.is_err() => gave_back,
        Ok(End::Interrupted) if !args.follow => {
            let message = "interrupted before the end; printed messages are committed";
            Err(Failure::new(Exit::Interrupted, "interrupted", message))
        }
        ended => ended.map(drop),
    }
}

struct Reader<'a> {
    args: &'a Args,
    client: &'a Client,
    /// The consumer's path.
    path: String,
    sender: SyncSender<Event>,
    events: Receiver<Event>,
    clock: SystemClock,
    /// The lease, once there is one.
    lease: Option<String>,
    /// Whether it had a lease before: then a consumer that was deleted is not created again.
    had_lease: bool,
    /// The consumer's positions, as far as known from answers and commits.
    at: BTreeMap<u64, u64>,
    /// The positions to commit next.
    written: BTreeMap<u64, u64>,
    committed_at: Duration,
}

impl Reader<'_> {
    fn read(&mut self, ends: &BTreeMap<u64, Ends>, printer: &mut Printer) -> Result<End, Failure> {
        while printer.left > 0 {
            let Some(answer) = self.next(printer.left)? else {
                return Ok(End::Interrupted);
            };
            for passed in items(&answer["passed_over"]) {
                let number = |field: &str| passed[field].as_u64().unwrap_or(0);
                jumped(number("partition"), number("from"), number("to"));
            }
            let is_empty = ["messages", "passed_over", "problems"]
                .iter()
                .all(|field| items(&answer[*field]).is_empty());
            let wrote = self.write(&answer, printer);
            if matches!(wrote, Ok(Wrote::All)) {
                let next = answer["commit"]["positions"].as_str();
                self.written.extend(places(next.unwrap_or_default()));
            }
            self.commit()?;
            if wrote? == Wrote::Interrupted {
                return Ok(End::Interrupted);
            }
            if self.lease.is_none() {
                continue;
            }
            self.go_past(items(&answer["problems"]))?;
            let is_behind = |(partition, ends): (&u64, &Ends)| {
                self.at.get(partition).is_none_or(|at| *at < ends.end)
            };
            if !self.args.follow && (is_empty || !ends.iter().any(is_behind)) {
                break;
            }
        }
        Ok(End::Done)
    }

    /// Writes the messages of an answer one by one, so that it knows which ones were written.
    fn write(&mut self, answer: &Value, printer: &mut Printer) -> Result<Wrote, Failure> {
        for message in items(&answer["messages"]) {
            if self.client.interrupt.is_wanted() {
                return Ok(Wrote::Interrupted);
            }
            printer.print(std::iter::once(message))?;
            printer.output.flush()?;
            let number = |field: &str| message[field].as_u64().unwrap_or(0);
            self.written
                .insert(number("partition"), number("offset") + 1);
            if self.clock.monotonic() > self.committed_at + COMMIT_INTERVAL {
                self.commit()?;
            }
            if self.lease.is_none() {
                return Ok(Wrote::Lost);
            }
        }
        Ok(Wrote::All)
    }

    /// The next answer; none if the user wants to stop.
    fn next(&mut self, left: u64) -> Result<Option<Value>, Failure> {
        let began = self.clock.monotonic();
        let mut said = false;
        loop {
            if self.client.interrupt.is_wanted() {
                return Ok(None);
            }
            let (client, path, sender) = (
                self.client.clone(),
                self.messages_path(left),
                self.sender.clone(),
            );
            // Does not wait after an interrupt: the request may wait at the host.
            thread::spawn(move || sender.send(Event::Answer(client.get(&path))));
            let failure = match self.answer() {
                None => return Ok(None),
                Some(Ok(answer)) => {
                    self.took(&answer)?;
                    return Ok(Some(answer));
                }
                Some(Err(failure)) => failure,
            };
            if failure.has_code(Code::LeaseLost) && self.lease.is_some() {
                self.lose(&failure);
                continue;
            }
            let waited = self.clock.monotonic().saturating_sub(began);
            let patience = self.client.patience();
            let waits = failure.has_code(Code::ConsumerBusy) && waited < patience;
            let comes_back = self.args.follow && failure.asks_to_come_back();
            if !waits && !comes_back {
                return Err(match failure.has_code(Code::ConsumerBusy) {
                    true => failure.with_hint(
                        "only one reader may be active: stop the other one, wait for its lease to end with --retry-for SECONDS, or read \
                         under another name",
                    ),
                    false => failure,
                });
            }
            if waits && !said {
                said = true;
                let seconds = patience.as_secs();
                note(&format!("note: {failure}; trying again for {seconds} s"));
            }
            self.client.sleep(COME_BACK_PAUSE);
        }
    }

    /// The host's answer; none if the user wants to stop. But a request that may give a lease is waited for, so that the lease can be
    /// released; such a request does not wait at the host.
    fn answer(&self) -> Option<Result<Value, Failure>> {
        loop {
            match self.events.recv() {
                Ok(Event::Answer(answer)) => return Some(answer),
                Ok(Event::Interrupted) if self.lease.is_none() => {}
                Ok(Event::Interrupted) | Err(_) => return None,
            }
        }
    }

    /// Takes the lease and the positions from the first answer.
    fn took(&mut self, answer: &Value) -> Result<(), Failure> {
        if self.lease.is_some() {
            return Ok(());
        }
        let lease = answer["commit"]["lease"].as_str();
        self.lease = lease.map(str::to_owned);
        let is_first = !std::mem::replace(&mut self.had_lease, true);
        let consumer = self.client.get(&self.path)?;
        let number = |place: &Value, field: &str| place[field].as_u64().unwrap_or(0);
        let places = items(&consumer["partitions"]).iter();
        self.at = places
            .map(|place| (number(place, "partition"), number(place, "position")))
            .collect();
        if is_first && self.args.from.is_some() && answer["created"] == false {
            note(
                "note: the consumer already exists and continues where it is; --from applies only to new consumers",
            );
        }
        Ok(())
    }

    fn messages_path(&self, left: u64) -> String {
        let max = left.clamp(1, FETCH_MESSAGES_MAX);
        let wait_ms = match self.args.follow && self.lease.is_some() {
            true => WAIT_MS_MAX,
            false => 0,
        };
        let mut path = format!(
            "{}/messages?max={max}&max_bytes=4194304&wait_ms={wait_ms}",
            self.path
        );
        let lease_ms = self.args.lease.unwrap_or(LEASE_SECONDS) * 1_000;
        // Writing to a string does not fail.
        let _ = match (&self.lease, self.args.from) {
            (Some(lease), _) => write!(path, "&lease={lease}"),
            (None, _) if self.had_lease => write!(path, "&lease_ms={lease_ms}&create=false"),
            (None, Some(from)) => write!(
                path,
                "&lease_ms={lease_ms}&from={}",
                escaped(&from.to_string())
            ),
            (None, None) => write!(path, "&lease_ms={lease_ms}"),
        };
        path
    }

    /// Commits what was written since the last commit, which also renews the lease.
    fn commit(&mut self) -> Result<(), Failure> {
        match self.send(false) {
            Err(failure) if failure.has_code(Code::LeaseLost) => {
                self.lose(&failure);
                Ok(())
            }
            sent => sent,
        }
    }

    /// The last commit: it releases the lease, so the next reader need not wait.
    fn give_back(&mut self) -> Result<(), Failure> {
        self.send(true)
    }

    fn send(&mut self, release: bool) -> Result<(), Failure> {
        let Some(lease) = &self.lease else {
            return Ok(());
        };
        if self.written.is_empty() && !release {
            return Ok(());
        }
        let place = |(partition, offset): (&u64, &u64)| format!("{partition}:{offset}");
        let positions: Vec<String> = self.written.iter().map(place).collect();
        let body = json!({"lease": lease, "positions": positions.join(","), "release": release});
        let path = format!("{}/commit", self.path);
        self.client.send_again(Method::POST, &path, &body)?;
        self.at.append(&mut self.written);
        self.committed_at = self.clock.monotonic();
        Ok(())
    }

    /// Another reader may have taken over, or the positions were reset: starts over as after a start.
    fn lose(&mut self, failure: &Failure) {
        note(&format!(
            "note: {failure}; printed but uncommitted messages are delivered again"
        ));
        self.lease = None;
        self.written.clear();
    }

    /// Skips what cannot be read, if allowed; otherwise it ends the command.
    fn go_past(&mut self, problems: &[Value]) -> Result<(), Failure> {
        for one in problems {
            let (partition, failure) = problem(one);
            let Some(partition) = partition else {
                return Err(failure);
            };
            let from = self.at.get(&partition).copied().unwrap_or(0);
            let to = past(failure, partition, from, self.args.skip_damaged)?;
            self.written.insert(partition, to);
        }
        self.commit()
    }
}
