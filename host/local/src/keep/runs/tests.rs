//! Tests that a paged table behaves like one in memory, wherever its entries are, and whatever
//! checkpoints do meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_engine::state::keeper::{KeepTable as _, Reading, Stored, TableStep};
use millrace_engine::state::{
    Adds, KeyColumns, Picture, StateAttempt, StateError, StatePage, StateQuery, StateTable,
    StateWrites, WriteColumns,
};
use millrace_log::Disk as _;
use millrace_log::run::{Run, RunWriter, merge};
use millrace_log::sim::SimDisk;
use millrace_model::Timestamp;
use millrace_model::columns::NONE;

use super::set::{RunSet, items_max, write};

const NOW: Timestamp = Timestamp(1_000);

/// Columns of texts, for the calls.
#[derive(Default)]
struct Columns {
    data: Vec<u8>,
    spans: Vec<u32>,
}

impl Columns {
    fn of(texts: &[&str]) -> Self {
        let mut columns = Self::default();
        for text in texts {
            let span = [columns.data.len() as u32, text.len() as u32];
            columns.spans.extend(span);
            columns.data.extend_from_slice(text.as_bytes());
        }
        columns
    }

    fn keys(&self) -> KeyColumns<'_> {
        KeyColumns {
            data: &self.data,
            spans: &self.spans,
        }
    }
}

fn attempt(table: &Arc<StateTable>) -> StateAttempt {
    StateAttempt::new(Arc::clone(table), NOW, 4)
}

fn set(attempt: &mut StateAttempt, key: &str, value: Option<&str>) -> Result<(), StateError> {
    let both = Columns::of(&[key, value.unwrap_or_default()]);
    let value = match value {
        Some(_) => [both.spans[2], both.spans[3]],
        None => [0, NONE],
    };
    let key = KeyColumns {
        data: &both.data,
        spans: &both.spans[..2],
    };
    let how = WriteColumns {
        ttl_ms: &[],
        messages: &[],
    };
    attempt.put(&key, &value, &how)
}

fn picture(table: &StateTable) -> Option<Picture> {
    match table.reading(&query("", None, 1)) {
        Reading::Picture(picture) => Some(picture),
        Reading::Page(_) => None,
    }
}

/// A paged table, with the steps of its checkpoints.
struct Paging {
    table: Arc<StateTable>,
    disk: SimDisk,
    runs: Option<Arc<RunSet>>,
    numbers: u64,
    /// Taken, but not written yet.
    step: Option<TableStep>,
}

fn path(number: u64) -> PathBuf {
    Path::new("/state").join(format!("{number}.run"))
}

impl Paging {
    fn new() -> Self {
        let disk = SimDisk::default();
        disk.create_dir_all(Path::new("/state")).unwrap();
        Self {
            table: Arc::default(),
            disk,
            runs: None,
            numbers: 0,
            step: None,
        }
    }

    fn hand_over(&mut self) {
        if let Some(step) = self.table.take_step(true) {
            self.step = Some(step);
        }
    }

    /// The step becomes durable.
    fn save(&mut self) {
        match self.step.take() {
            None => {}
            Some(TableStep::Rows(changes)) if changes.empties => self.runs = None,
            Some(TableStep::Rows(_)) => {}
            Some(TableStep::Layers(step)) => {
                let before = self.runs.take().filter(|_| !step.is_whole());
                let mut runs = before
                    .as_ref()
                    .map_or(Vec::new(), |set| set.runs().to_vec());
                self.numbers += 1;
                let (path, items) = (path(self.numbers), items_max(&step));
                let writer = RunWriter::create(&self.disk, &path, self.numbers, items, None);
                let mut writer = writer.unwrap();
                if write(&step, runs.is_empty(), &mut writer).unwrap() {
                    writer.finish().unwrap();
                    runs.push(self.open(self.numbers));
                }
                let runs = RunSet::of(runs);
                let table = step.table.upgrade().unwrap();
                let before = before.map(|before| before as Arc<dyn Stored>);
                let stored: Arc<dyn Stored> = Arc::<RunSet>::clone(&runs);
                table.install(&step.layers, before.as_ref(), stored);
                self.runs = Some(runs);
            }
        }
    }

    fn open(&self, number: u64) -> Arc<Run> {
        let run = Run::open(&self.disk, &path(number), number, None);
        Arc::new(run.unwrap())
    }

    /// Merges all runs into one.
    fn merge(&mut self) {
        let Some(before) = self.runs.clone().filter(|set| set.runs().len() > 1) else {
            return;
        };
        self.numbers += 1;
        let path = path(self.numbers);
        let items = before.runs().iter().map(|run| run.facts().items()).sum();
        let writer = RunWriter::create(&self.disk, &path, self.numbers, items, None).unwrap();
        let pace: millrace_log::pace::Pace = Arc::new(|_| Ok(()));
        merge(before.runs(), true, writer, &pace).unwrap();
        let runs = RunSet::of(vec![self.open(self.numbers)]);
        let before: Arc<dyn Stored> = before;
        let stored: Arc<dyn Stored> = Arc::<RunSet>::clone(&runs);
        self.table.install(&[], Some(&before), stored);
        self.runs = Some(runs);
    }
}

fn page(table: &StateTable, prefix: &str, after: Option<&str>, entries_max: usize) -> StatePage {
    table.page(&query(prefix, after, entries_max)).unwrap()
}

fn query(prefix: &str, after: Option<&str>, entries_max: usize) -> StateQuery {
    StateQuery {
        prefix: prefix.into(),
        after: after.map(Into::into),
        entries_max,
        bytes_max: usize::MAX,
        now: NOW,
    }
}

fn random_key(random: &mut fastrand::Rng) -> String {
    format!(
        "{}{}",
        ["a", "ab", "b"][random.usize(0..3)],
        random.u32(0..40)
    )
}

/// Makes the same calls on both; returns their answers.
fn call(attempt: &mut StateAttempt, seed: u64) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut said = String::new();
    for _ in 0..random.usize(1..12) {
        let keys: Vec<String> = (0..random.usize(1..6))
            .map(|_| random_key(&mut random))
            .collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let columns = Columns::of(&keys);
        let ttl_ms: Vec<u64> = keys.iter().map(|_| random.u64(0..2) * 50_000).collect();
        let how = WriteColumns {
            ttl_ms: if random.bool() { &ttl_ms } else { &[] },
            messages: &[],
        };
        let answer = match random.u32(0..8) {
            0 => format!("{:?}", attempt.get(&columns.keys())),
            1 => {
                let none = [0, NONE].repeat(keys.len());
                format!("{:?}", attempt.put(&columns.keys(), &none, &how))
            }
            2 => {
                // Longer than a number, so that adding to it is a mistake.
                let span = [columns.spans[0], columns.spans[1]];
                let values = span.repeat(keys.len());
                format!("{:?}", attempt.put(&columns.keys(), &values, &how))
            }
            3 => format!("{:?}", attempt.list(b"a", Some(b"ab"), random.usize(0..9))),
            4 => format!("{:?}", attempt.list(b"", None, 1_000)),
            _ => format!("{:?}", attempt.add(&columns.keys(), &[], &how)),
        };
        said.push_str(&answer);
    }
    said
}

#[test]
fn a_paged_table_is_as_one_in_memory_at_every_step() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (plain, mut paging) = (Arc::new(StateTable::default()), Paging::new());
        let table = Arc::clone(&paging.table);
        let mut pictures: Vec<(Picture, StatePage)> = Vec::new();
        let mut sweeps = 0;
        for _ in 0..60 {
            match random.u32(0..13) {
                0 | 1 => paging.hand_over(),
                2 | 3 => paging.save(),
                4 => {
                    paging.hand_over();
                    paging.save();
                }
                5 if random.bool() => paging.merge(),
                8 => {
                    sweeps += 1;
                    let now = Timestamp(NOW.0 + 1_001 * sweeps);
                    plain.sweep(now, 1_000);
                    table.sweep(now, 1_000);
                    let ended = table.find_ended(now, 1_000, usize::MAX).unwrap();
                    let writes = ended.into_writes();
                    assert_eq!(table.adds(&writes).unwrap(), writes.adds.unwrap());
                    table.apply(&writes).unwrap();
                }
                6 if random.u32(0..4) == 0 => {
                    let resets = StateWrites {
                        resets: true,
                        ..StateWrites::default()
                    };
                    plain.apply(&resets).unwrap();
                    table.apply(&resets).unwrap();
                }
                7 => {
                    if let Some(picture) = picture(&table) {
                        let all = picture.page(&query("", None, 1_000)).unwrap();
                        pictures.push((picture, all));
                    }
                }
                _ => {
                    let call_seed = random.u64(..);
                    let at_once = random.bool();
                    let [one, other] = [&plain, &table].map(|table| {
                        let mut tried = attempt(table);
                        if at_once {
                            tried = tried.at_one_moment();
                        }
                        let said = call(&mut tried, call_seed);
                        (said, tried.into_writes())
                    });
                    assert_eq!(one.0, other.0, "seed {seed}");
                    assert_eq!(one.1.adds, other.1.adds, "seed {seed}");
                    assert_eq!(table.adds(&other.1).unwrap(), other.1.adds.unwrap());
                    plain.apply(&one.1).unwrap();
                    table.apply(&other.1).unwrap();
                }
            }
            assert_eq!(plain.size(), table.size(), "seed {seed}");
            for (prefix, after, max) in [("", None, 1_000), ("a", Some("ab1"), 7), ("b", None, 3)] {
                let [one, other] = [&plain, &table].map(|table| page(table, prefix, after, max));
                assert_eq!(one.entries, other.entries, "seed {seed}");
                assert_eq!((one.has_more, one.size), (other.has_more, other.size));
            }
            let mut keys = [Vec::new(), Vec::new()];
            for (table, keys) in [&plain, &table].into_iter().zip(&mut keys) {
                table.each_key(|key| keys.push(key.to_vec())).unwrap();
            }
            assert_eq!(keys[0], keys[1]);
        }
        for (picture, all) in pictures {
            let again = picture.page(&query("", None, 1_000)).unwrap();
            assert_eq!(again, all, "a picture stays as it is");
        }
    }
}

#[test]
fn a_checkpoint_that_was_not_made_leaves_what_it_had_to_the_next_one() {
    let mut paging = Paging::new();
    let table = Arc::clone(&paging.table);
    let write = |key: &str, value: Option<&str>| {
        let mut attempt = attempt(&table);
        set(&mut attempt, key, value).unwrap();
        table.apply(&attempt.into_writes()).unwrap();
    };
    write("a", Some("1"));
    write("b", Some("2"));
    paging.hand_over();
    write("a", None);
    // The first one was abandoned.
    paging.hand_over();
    write("c", Some("3"));
    paging.save();
    let keys = |page: StatePage| -> Vec<String> {
        let key = |entry: &millrace_engine::state::StateEntry| {
            String::from_utf8(entry.key.to_vec()).unwrap()
        };
        page.entries.iter().map(key).collect()
    };
    assert_eq!(keys(page(&table, "", None, 10)), ["b", "c"]);
    // The run has everything that was taken, without removals, because there is nothing below.
    let stored = StateTable::paged(paging.runs.clone().unwrap(), table.size());
    assert_eq!(keys(page(&stored, "", None, 10)), ["b"]);
    assert_eq!(paging.runs.as_ref().unwrap().runs()[0].facts().items(), 1);
    paging.hand_over();
    paging.save();
    let stored = StateTable::paged(paging.runs.clone().unwrap(), table.size());
    assert_eq!(keys(page(&stored, "", None, 10)), ["b", "c"]);
}

#[test]
fn what_a_checkpoint_wrote_of_a_table_that_was_emptied_meanwhile_does_not_come_back() {
    let mut paging = Paging::new();
    let table = Arc::clone(&paging.table);
    let write = |resets: bool, key: &str| {
        let mut attempt = StateAttempt::new(Arc::default(), NOW, 1);
        set(&mut attempt, key, Some("1")).unwrap();
        let writes = attempt.into_writes();
        table.apply(&StateWrites { resets, ..writes }).unwrap();
    };
    write(false, "before");
    paging.hand_over();
    write(true, "after");
    paging.save();
    assert!(!table.is_paged(), "an emptied table is in memory");
    let found = page(&table, "", None, 10);
    assert_eq!(found.entries.len(), 1);
    assert_eq!(&*found.entries[0].key, b"after");
    assert_eq!(found.size, table.size());
    paging.hand_over();
    paging.save();
    assert!(table.is_paged());
    assert_eq!(paging.runs.as_ref().unwrap().runs().len(), 1);
    assert_eq!(page(&table, "", None, 10).entries.len(), 1);
}

#[test]
fn writes_that_do_not_say_what_they_add_or_take_away_too_much_are_not_taken() {
    let mut paging = Paging::new();
    let table = Arc::clone(&paging.table);
    let mut first = attempt(&table);
    set(&mut first, "a", Some("1")).unwrap();
    table.apply(&first.into_writes()).unwrap();
    paging.hand_over();
    let before = table.size();
    let adds = |entries| Some(Adds { entries, bytes: -1 });
    for adds in [None, adds(-2)] {
        let writes = StateWrites {
            adds,
            ..StateWrites::default()
        };
        assert!(!table.can_apply(&writes));
        assert!(table.apply(&writes).is_err());
        assert_eq!(table.size(), before);
    }
}

/// Sets the key with this time to live.
fn set_for(table: &Arc<StateTable>, key: &str, ttl_ms: u64) {
    let columns = Columns::of(&[key]);
    let how = WriteColumns {
        ttl_ms: &[ttl_ms],
        messages: &[],
    };
    let mut attempt = attempt(table);
    attempt
        .put(&columns.keys(), &columns.spans, &how)
        .expect("set");
    table.apply(&attempt.into_writes()).unwrap();
}

#[test]
fn places_of_ends_go_after_what_ended_there() {
    let mut paging = Paging::new();
    let table = Arc::clone(&paging.table);
    for key in ["ends", "lives on", "removed"] {
        set_for(&table, key, 10);
    }
    paging.hand_over();
    paging.save();
    set_for(&table, "lives on", 100_000);
    let mut removal = attempt(&table);
    set(&mut removal, "removed", None).unwrap();
    table.apply(&removal.into_writes()).unwrap();
    paging.hand_over();
    paging.save();
    assert!(!table.may_have_ended(Timestamp(1_009)));
    let now = Timestamp(2_000);
    let ended = table.find_ended(now, 10, usize::MAX).unwrap();
    assert_eq!(ended.len(), 1);
    table.apply(&ended.into_writes()).unwrap();
    assert_eq!(table.size().entries, 1);
    assert!(!table.may_have_ended(now), "it rests");
    let later = Timestamp(4_000);
    assert!(table.find_ended(later, 10, usize::MAX).unwrap().is_empty());
    paging.hand_over();
    paging.save();
    paging.merge();
    // The remaining entry, and its place.
    assert_eq!(paging.runs.as_ref().unwrap().runs()[0].facts().items(), 2);
    assert!(!table.may_have_ended(Timestamp(100_999)));
    let stored = StateTable::paged(paging.runs.clone().unwrap(), table.size());
    for table in [&*table, &stored] {
        let ended = table.find_ended(Timestamp(101_000), 10, usize::MAX);
        assert_eq!(ended.unwrap().len(), 1);
    }
}

#[test]
fn what_ended_is_found_in_parts_and_again_until_it_is_removed() {
    let mut paging = Paging::new();
    let table = Arc::clone(&paging.table);
    for key in ["a", "b", "c", "d", "e"] {
        set_for(&table, key, 10);
        paging.hand_over();
        paging.save();
    }
    let now = Timestamp(2_000);
    for _ in 0..2 {
        assert_eq!(table.find_ended(now, 2, usize::MAX).unwrap().len(), 2);
        assert!(table.may_have_ended(now));
    }
    assert_eq!(table.find_ended(now, 10, 0).unwrap().len(), 1);
    let mut sizes = Vec::new();
    while table.may_have_ended(now) {
        let ended = table.find_ended(now, 2, usize::MAX).unwrap();
        table.apply(&ended.into_writes()).unwrap();
        sizes.push(table.size().entries);
    }
    assert_eq!(sizes.last(), Some(&0), "{sizes:?}");
    // A call that writes one of them counts it once.
    set_for(&table, "f", 10);
    paging.hand_over();
    let ended = table.find_ended(Timestamp(4_000), 10, usize::MAX).unwrap();
    let mut own = StateAttempt::new(Arc::clone(&table), Timestamp(4_000), 1);
    own.remove_ended(ended);
    set(&mut own, "f", Some("1")).unwrap();
    let writes = own.into_writes();
    assert_eq!(writes.changes.len(), 1);
    assert_eq!(table.adds(&writes).unwrap(), writes.adds.unwrap());
}
