//! The state of groups in scripts: the writes of a step, their expected result, and the scripts
//! whose transactions contain progress, outputs, an entry and state.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_engine::EntryKind;
use millrace_engine::state::{
    KeyColumns, NEVER, StateAttempt, StateError, StateQuery, StateTable, StateWrites, WriteColumns,
};
use millrace_model::Durability::{Durable, Os};
use millrace_model::Timestamp;
use millrace_model::columns::NONE;

use super::life_scripts::HOUR_MS;
use super::model::{Dump, GROUPS, Place, Step, value};

/// Expired entries that a step also removes: fewer than exist.
const SWEPT_AT_ONCE: usize = 2;

/// The writes of a step to one table.
#[derive(Clone, Debug)]
pub(super) struct Writes {
    /// Whether it is emptied first.
    pub(super) resets: bool,
    pub(super) changes: Vec<(u8, Change)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// A value of this many bytes, forever or for this many milliseconds.
    Set(usize, Option<u64>),
    Add(i64),
    /// Like `Add`, and the entry expires this many milliseconds later.
    AddFor(i64, u64),
    Remove,
}

/// One group's state in one partition: value and expiry of each key.
pub(super) type Table = BTreeMap<u8, (Vec<u8>, Timestamp)>;

impl Writes {
    pub(super) fn new(changes: Vec<(u8, Change)>) -> Self {
        let resets = false;
        Self { resets, changes }
    }

    /// The table after the `number`-th step, computed without the engine's own code.
    pub(super) fn apply(&self, number: u64, now: Timestamp, table: &mut Table) {
        if self.resets {
            table.clear();
        }
        for &(key, change) in &self.changes {
            let end = |ttl_ms: u64| Timestamp(now.0 + ttl_ms);
            let held = table.get(&key).filter(|(_, ends_at)| *ends_at > now);
            let sum = |more: i64| {
                let number =
                    |held: &(Vec<u8>, _)| i64::from_le_bytes(held.0[..].try_into().unwrap());
                (held.map_or(0, number) + more).to_le_bytes().to_vec()
            };
            let kept_end = held.map_or(NEVER, |(_, ends_at)| *ends_at);
            let after = match change {
                Change::Remove => {
                    table.remove(&key);
                    continue;
                }
                Change::Set(bytes, ttl_ms) => {
                    let bytes = value(number, bytes).into_bytes();
                    (bytes, ttl_ms.map_or(NEVER, end))
                }
                Change::Add(more) => (sum(more), kept_end),
                Change::AddFor(more, ttl_ms) => (sum(more), end(ttl_ms)),
            };
            table.insert(key, after);
        }
    }

    /// Makes the same writes as a component would, over the engine's table.
    pub(super) fn attempt(
        &self,
        held: Arc<StateTable>,
        number: u64,
        now: Timestamp,
    ) -> Result<StateWrites, StateError> {
        let table = if self.resets { Arc::default() } else { held };
        let ended = table.find_ended(now, SWEPT_AT_ONCE, usize::MAX)?;
        let mut attempt = StateAttempt::new(table, now, 1);
        attempt.remove_ended(ended);
        for &(key, change) in &self.changes {
            write(&mut attempt, key, change, number)?;
        }
        let mut writes = attempt.into_writes();
        writes.resets = self.resets;
        // In the same order every time.
        writes.changes.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(writes)
    }
}

fn write(
    attempt: &mut StateAttempt,
    key: u8,
    change: Change,
    number: u64,
) -> Result<(), StateError> {
    let mut data = vec![key];
    let ttl_ms = match change {
        Change::Set(_, Some(ttl_ms)) | Change::AddFor(_, ttl_ms) => vec![ttl_ms],
        _ => Vec::new(),
    };
    let how = WriteColumns {
        ttl_ms: &ttl_ms,
        messages: &[],
    };
    let mut put = |data: &[u8], length: u32| {
        let keys = KeyColumns {
            data,
            spans: &[0, 1],
        };
        attempt.put(&keys, &[1, length], &how)
    };
    match change {
        Change::Set(bytes, _) => {
            data.extend(value(number, bytes).into_bytes());
            put(&data, data.len() as u32 - 1)
        }
        Change::Remove => put(&data, NONE),
        Change::Add(more) | Change::AddFor(more, _) => {
            let keys = KeyColumns {
                data: &data,
                spans: &[0, 1],
            };
            attempt.add(&keys, &[more], &how).map(drop)
        }
    }
}

/// The content of the engine's table, including expired entries.
pub(super) fn table_of(table: &StateTable) -> Table {
    let all = StateQuery {
        entries_max: usize::MAX,
        bytes_max: usize::MAX,
        ..StateQuery::default()
    };
    let page = table.page(&all).expect("readable");
    let mut bytes = 0;
    let entries = page.entries.iter().map(|entry| {
        bytes += entry.key.len()
            + entry.value.as_bytes().len()
            + millrace_engine::state::ENTRY_OVERHEAD_BYTES;
        let held = (entry.value.as_bytes().to_vec(), entry.ends_at);
        (entry.key[0], held)
    });
    let found: Table = entries.collect();
    assert_eq!(page.size.entries, found.len(), "entries are counted right");
    assert_eq!(page.size.bytes, bytes, "bytes are counted right");
    found
}

impl Dump {
    pub(super) fn write_state(
        &mut self,
        number: u64,
        group: &'static str,
        place: Place,
        writes: &Writes,
    ) {
        let (at, now) = (self.at(place), self.now);
        let table = self.state.entry((at, group)).or_default();
        writes.apply(number, now, table);
        if table.is_empty() {
            self.state.remove(&(at, group));
        }
    }

    pub(super) fn empty_state(&mut self, group: &'static str, topic: &'static str) {
        let topic = self.topic(topic).id;
        self.state
            .retain(|(at, of), _| at.topic != topic || *of != group);
    }

    /// Whether the state matches the model; entries expired by `now` may be missing.
    pub(super) fn has_state_of(&self, model: &Self, now: Timestamp) -> bool {
        let none = Table::new();
        let mut places = self.state.keys().chain(model.state.keys());
        places.all(|place| {
            let [found, model] = [self, model].map(|dump| dump.state.get(place).unwrap_or(&none));
            let known = found.iter().all(|(key, held)| model.get(key) == Some(held));
            let gone = model.iter().filter(|(key, _)| !found.contains_key(key));
            known
                && gone
                    .map(|(_, held)| held)
                    .all(|(_, ends_at)| *ends_at <= now)
        })
    }
}

/// All scripts, by name.
pub(super) fn all() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        ("state with progress and outputs", counts()),
        ("state over many journal files", large()),
        ("state that ends", ends()),
        ("state of topics and processors that go", comes_and_goes()),
    ]
}

/// A step with progress in the input, an output, and state in the input's partition.
fn count(group: &'static str, input: Place, output: Place, changes: Vec<(u8, Change)>) -> Step {
    Step::Count(group, input, output, input, Writes::new(changes))
}

fn import(group: &'static str, place: Place, keys: std::ops::Range<u8>) -> Step {
    let changes = keys.map(|key| (key, Change::Set(key.into(), None)));
    let writes = Writes {
        resets: true,
        changes: changes.collect(),
    };
    Step::Write(group, place, writes)
}

fn counts() -> Vec<Step> {
    use Change::{Add, Remove, Set};
    let [first, second] = GROUPS;
    let (zero, one) = (("in", 0), ("in", 1));
    let mut script = vec![
        Step::Create("in", 2, Durable),
        Step::Create("out", 1, Durable),
        Step::Create("loose", 1, Os),
        Step::Claim(first, "in", 0),
        Step::Claim(first, "in", 1),
        Step::Claim(second, "in", 0),
    ];
    for n in 0..6_u8 {
        let length = usize::from(n) * 9;
        script.push(count(
            first,
            zero,
            ("out", 0),
            vec![
                (n % 3, Add(1)),
                (9, Add(-2)),
                (n % 2 + 10, Set(length, None)),
            ],
        ));
        script.push(count(
            first,
            one,
            ("loose", 0),
            vec![
                (n % 2, Add(i64::from(n))),
                (12, Set(length, None)),
                (13 + (n + 1) % 2, Remove),
            ],
        ));
        script.push(count(
            second,
            zero,
            ("loose", 0),
            vec![(n % 2, Add(1)), (13 + n % 2, Set(0, None)), (n % 2, Add(5))],
        ));
        match n {
            1 => script.push(Step::Checkpoint),
            2 => {
                script.push(import(second, zero, 20..24));
                // A redriven dead letter: progress in the redrive topic, state in its original
                // partition.
                let writes = Writes::new(vec![(1, Add(1))]);
                script.push(Step::Count(first, one, ("out", 0), zero, writes));
            }
            3 => script.push(Step::Restart),
            4 => {
                script.push(Step::Checkpoint);
                script.push(Step::Reopen);
                script.push(Step::Renew(first, "in"));
            }
            _ => {}
        }
    }
    script.push(Step::Checkpoint);
    script
}

/// More than fits into one journal file between two checkpoints.
fn large() -> Vec<Step> {
    use Change::{Add, Remove, Set};
    let [first, _] = GROUPS;
    let mut script = vec![
        Step::Create("in", 1, Durable),
        Step::Create("out", 1, Durable),
        Step::Create("loose", 1, Os),
        Step::Claim(first, "in", 0),
    ];
    for n in 0..12_u8 {
        let output = if n % 3 == 0 { "out" } else { "loose" };
        let changes = vec![
            (n % 5, Set(3_300, None)),
            (20, Add(1)),
            (n % 4, Remove),
            (30 + n, Set(10, None)),
        ];
        script.push(count(first, ("in", 0), (output, 0), changes));
        match n % 6 {
            3 => script.push(Step::Checkpoint),
            5 => script.push(Step::Restart),
            _ => {}
        }
    }
    script.push(import(first, ("in", 0), 0..3));
    script.push(Step::Checkpoint);
    script.push(count(first, ("in", 0), ("out", 0), vec![(20, Add(1))]));
    script
}

/// Expired entries disappear, and later entries under the same key are not mistaken for them.
fn ends() -> Vec<Step> {
    use Change::{Add, AddFor, Set};
    let [first, _] = GROUPS;
    let mut script = vec![
        Step::Create("in", 1, Durable),
        Step::Create("out", 1, Durable),
        Step::Claim(first, "in", 0),
    ];
    let counts = || {
        let changes = vec![
            (1, AddFor(1, HOUR_MS)),
            (2, Set(5, Some(HOUR_MS))),
            (3, Add(1)),
            (4, AddFor(1, 3 * HOUR_MS)),
        ];
        count(first, ("in", 0), ("out", 0), changes)
    };
    for n in 0..2 {
        script.push(counts());
        script.push(Step::Checkpoint);
        script.push(Step::Wait(HOUR_MS / 2));
        script.push(counts());
        // The second time, nothing was written since the last checkpoint, but entries have expired.
        if n != 0 {
            script.push(Step::Checkpoint);
        }
        script.push(Step::Wait(2 * HOUR_MS));
        script.push(Step::Checkpoint);
        script.push(counts());
        script.push(Step::Checkpoint);
        script.push(Step::Restart);
        script.push(counts());
        script.push(Step::Checkpoint);
        script.push(Step::Restart);
    }
    script.push(Step::Wait(4 * HOUR_MS));
    script.push(Step::Checkpoint);
    script.push(counts());
    script
}

fn comes_and_goes() -> Vec<Step> {
    use Change::{Add, Set};
    let [first, second] = GROUPS;
    let mut script = vec![Step::Create("out", 1, Os)];
    for n in 0..3_u8 {
        script.push(Step::Create("in", 2, Durable));
        script.push(Step::Entry(EntryKind::Processor, "p", Some(10)));
        script.push(Step::Claim(first, "in", 1));
        script.push(Step::Claim(second, "in", 0));
        for _ in 0..2 {
            let changes = vec![(1, Add(1)), (n + 10, Set(40, None))];
            script.push(count(first, ("in", 1), ("out", 0), changes.clone()));
            script.push(count(second, ("in", 0), ("out", 0), changes));
        }
        if n != 1 {
            script.push(Step::Checkpoint);
        }
        match n {
            0 => script.push(import(first, ("in", 0), 3..5)),
            1 => script.push(Step::Renew(second, "in")),
            2 => script.push(Step::Restart),
            _ => {}
        }
        // The processor is deleted, and its state stays; the topic is deleted, and the state with
        // it.
        script.push(Step::Entry(EntryKind::Processor, "p", None));
        script.push(count(first, ("in", 1), ("out", 0), vec![(1, Add(1))]));
        script.push(Step::Delete("in"));
        if n % 2 == 0 {
            script.push(Step::Checkpoint);
        }
    }
    script.push(Step::Create("in", 2, Durable));
    script.push(Step::Claim(first, "in", 1));
    script.push(count(first, ("in", 1), ("out", 0), vec![(1, Add(1))]));
    script
}

/// Random writes.
pub(super) fn random_writes(random: &mut fastrand::Rng) -> Writes {
    let changes = (0..random.usize(1..4)).map(|_| {
        // Numbers and texts use different keys.
        let key = random.u8(..4);
        let ttl_ms = random.u64(1..20 * HOUR_MS);
        match random.u8(..6) {
            0 => (key, Change::Remove),
            1 => (key, Change::AddFor(1, ttl_ms)),
            2 | 3 => (key, Change::Add(random.i64(-9..9))),
            4 => (key + 10, Change::Set(random.usize(..900), Some(ttl_ms))),
            _ => (key + 10, Change::Set(random.usize(..60), None)),
        }
    });
    Writes::new(changes.collect())
}
