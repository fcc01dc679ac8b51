//! Messages with a time: a delayed message is delivered once and not before its time; each time of
//! a schedule is covered by exactly one message.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::super::history::{DELAYED, Tick};
use super::{Checker, Id, Kind};

/// How late a schedule may be while the host is up, in intervals of the schedule; a shared machine
/// has pauses.
const LATE_INTERVALS_MAX: u64 = 3;
/// The same for several hosts: one that stands still is first considered dead.
const LATE_INTERVALS_OF_SEVERAL_MAX: u64 = 30;

/// By how much the clocks of several hosts may differ from their store's.
const EARLY_MS_OF_SEVERAL_MAX: u64 = 250;

/// Clients note the time more often than this, unless the machine stood still.
const PAUSE_MS: u64 = 500;

/// What is known about times.
#[derive(Default)]
pub(super) struct Times {
    /// Whatever the history reports at this point was there by this time.
    pub(super) now_ms: u64,
    /// Whether several hosts share the store.
    pub(super) several: bool,
    /// The due time of each delayed message.
    due_ms: HashMap<Id, u64>,
    schedule: Option<Schedule>,
    /// Since when the host has been up without a fault.
    up_since_ms: Option<u64>,
    /// Periods from a start to the next fault.
    up: Vec<(u64, u64)>,
}

struct Schedule {
    every_ms: u64,
    since_ms: u64,
    ticks: BTreeMap<u64, Tick>,
    /// When the last reading was requested, and what it showed.
    last: Option<(u64, Vec<Tick>)>,
}

impl Times {
    pub(super) fn is(&mut self, now_ms: u64) {
        if now_ms > self.now_ms + PAUSE_MS {
            // The clients did not run either: nothing is known of that time.
            let was_up = self.up_since_ms.is_some();
            self.hit();
            self.up_since_ms = was_up.then_some(now_ms);
        }
        self.now_ms = self.now_ms.max(now_ms);
    }

    pub(super) fn started(&mut self) {
        self.up_since_ms = Some(self.now_ms);
    }

    pub(super) fn hit(&mut self) {
        let since = self.up_since_ms.take();
        self.up.extend(since.map(|since| (since, self.now_ms)));
    }

    pub(super) fn scheduled(&mut self, every_ms: u64, since_ms: u64) {
        self.schedule = Some(Schedule {
            every_ms,
            since_ms,
            ticks: BTreeMap::new(),
            last: None,
        });
    }

    pub(super) fn is_due(&mut self, first: Id, due_ms: &[u64]) {
        let ids = (first.sequence..).map(|sequence| Id::new(first.producer, sequence));
        self.due_ms.extend(ids.zip(due_ms.iter().copied()));
    }

    /// By how much a message is too early.
    pub(super) fn early_ms(&self, id: Id) -> Option<u64> {
        let due_ms = *self.due_ms.get(&id)?;
        (due_ms > self.latest_ms()).then(|| due_ms - self.now_ms)
    }

    /// Whatever is due after this is early.
    fn latest_ms(&self) -> u64 {
        let slack_ms = if self.several {
            EARLY_MS_OF_SEVERAL_MAX
        } else {
            0
        };
        self.now_ms + slack_ms
    }

    fn late_intervals_max(&self) -> u64 {
        match self.several {
            true => LATE_INTERVALS_OF_SEVERAL_MAX,
            false => LATE_INTERVALS_MAX,
        }
    }

    /// Whether the host was up, from this time on, for at least as long as a schedule may be late.
    fn was_up(&self, from_ms: u64, every_ms: u64) -> bool {
        let until_ms = from_ms + self.late_intervals_max() * every_ms;
        let is_within = |(since, until): &(u64, u64)| *since <= from_ms && until_ms <= *until;
        self.up.iter().any(is_within)
    }
}

impl Checker {
    pub(super) fn ticked(&mut self, asked_ms: u64, ticks: &[Tick], last: bool) {
        let (now_ms, latest_ms) = (self.times.now_ms, self.times.latest_ms());
        let Some(schedule) = &mut self.times.schedule else {
            return;
        };
        let mut findings = Vec::new();
        for tick in ticks {
            let before = *schedule.ticks.entry(tick.offset).or_insert(*tick);
            if before != *tick {
                findings.push((
                    Kind::Divergent,
                    format!("schedule: {before:?}, and later {tick:?}"),
                ));
            }
            if tick.due_ms > latest_ms {
                findings.push((Kind::Early, format!("schedule: {tick:?} at {now_ms}")));
            }
        }
        if last {
            schedule.last = Some((asked_ms, ticks.to_vec()));
        }
        for (kind, text) in findings {
            self.find(kind, text);
        }
    }

    pub(super) fn check_times(&mut self) {
        // After a fault without a restart, such as a full disk, schedules may wait for longer.
        let is_up = self.times.up_since_ms.is_some();
        // The calm before the last reading counts as time up.
        self.times.hit();
        let mut findings = self.delayed_lost();
        findings.extend(self.delayed_out_of_order());
        findings.extend(self.schedule_wrong(is_up));
        for (kind, text) in findings {
            self.find(kind, text);
        }
    }

    /// Checks that accepted delayed messages are there. That they are not there twice is checked as
    /// for any request.
    fn delayed_lost(&mut self) -> Vec<(Kind, String)> {
        let mut findings = Vec::new();
        let partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        let there: HashSet<Id> = partitions
            .flat_map(|(_, here)| here.last.values().copied())
            .collect();
        let mut delayed = 0;
        for ((producer, first), request) in &self.requests {
            for (sequence, (_, offset)) in (*first..).zip(&request.placed) {
                let id = Id::new(*producer, sequence);
                if *offset != DELAYED {
                    continue;
                }
                delayed += 1;
                if !there.contains(&id) {
                    let line = request.acknowledged_line;
                    let text = format!("{}: {id}, delayed, taken in line {line:?}", request.topic);
                    findings.push((Kind::Lost, text));
                }
            }
        }
        self.verdict.tally.delayed += delayed;
        findings
    }

    /// Checks that of two messages that waited at the same time the one due first comes first: it
    /// had been accepted before the other was due.
    fn delayed_out_of_order(&self) -> Vec<(Kind, String)> {
        let mut findings = Vec::new();
        // The host that delivers may hear of a message only after later ones that it took itself.
        if self.times.several {
            return findings;
        }
        for (name, topic) in self.topics.iter().filter(|(_, topic)| topic.delays) {
            for (number, partition) in &topic.partitions {
                // The message so far that is due last.
                let mut latest: Option<(Id, u64)> = None;
                for (offset, id) in &partition.last {
                    let Some((due_ms, taken_ms)) = self.waited(*id) else {
                        continue;
                    };
                    if let Some((before, _)) = latest
                        .filter(|(_, latest_ms)| *latest_ms > due_ms && *latest_ms >= taken_ms)
                    {
                        let text = format!("{name}/{number} at {offset}: {id} after {before}");
                        findings.push((Kind::Reordered, text));
                    }
                    if latest.is_none_or(|(_, latest_ms)| latest_ms < due_ms) {
                        latest = Some((*id, due_ms));
                    }
                }
            }
        }
        findings
    }

    /// When a delayed message was due, and the time by which it had been accepted.
    fn waited(&self, id: Id) -> Option<(u64, u64)> {
        let mut before = self.requests.range(..=(id.producer, id.sequence));
        let ((_, first), request) = before.next_back()?;
        let at = usize::try_from(id.sequence - first).ok()?;
        let (_, offset) = request.placed.get(at)?;
        (*offset == DELAYED).then_some(())?;
        Some((*self.times.due_ms.get(&id)?, request.taken_ms?))
    }

    /// Checks that each time belongs to one message: the one made for it, or one that stands for
    /// times missed while the host was down.
    fn schedule_wrong(&mut self, is_up: bool) -> Vec<(Kind, String)> {
        let Some(schedule) = &self.times.schedule else {
            return Vec::new();
        };
        let Some((asked_ms, last)) = &schedule.last else {
            let text = "nobody looked at what the schedule made".to_owned();
            return vec![(Kind::Unexpected, text)];
        };
        let every_ms = schedule.every_ms;
        let mut findings = Vec::new();
        for tick in schedule.ticks.values().filter(|tick| !last.contains(tick)) {
            findings.push((Kind::Lost, format!("schedule: {tick:?}")));
        }
        // The first time after the schedule was made; its messages tell which one that is.
        let mut next_ms = None;
        for tick in last {
            let from_ms = tick.due_ms.saturating_sub(tick.missed * every_ms);
            let expected_ms = next_ms.unwrap_or_else(|| from_ms.min(schedule.since_ms + every_ms));
            if from_ms < expected_ms {
                let text = format!("schedule: {tick:?}, and what comes next is {expected_ms}");
                findings.push((Kind::Twice, text));
            } else if from_ms > expected_ms {
                let text = format!("schedule: {expected_ms} to {from_ms} (exclusive)");
                findings.push((Kind::Missing, text));
            }
            let missed = (0..tick.missed).map(|at| from_ms + at * every_ms);
            for missed_ms in missed.filter(|ms| self.times.was_up(*ms, every_ms)) {
                let text = format!("schedule: {missed_ms}, though the host was up, in {tick:?}");
                findings.push((Kind::Missing, text));
            }
            next_ms = Some(tick.due_ms + every_ms);
        }
        let expected_ms = next_ms.unwrap_or(schedule.since_ms + every_ms);
        if is_up && expected_ms + self.times.late_intervals_max() * every_ms < *asked_ms {
            let text = format!("schedule: {expected_ms}, and it was {asked_ms}");
            findings.push((Kind::Missing, text));
        }
        let tally = &mut self.verdict.tally;
        tally.ticks += last.len() as u64;
        tally.ticks_missed += last.iter().map(|tick| tick.missed).sum::<u64>();
        findings
    }
}
