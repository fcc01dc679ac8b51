//! Runs a script on the whole engine, one step after the other, and keeps a copy of the disk before
//! every operation that changes it: the crash points.
//!
//! A run is deterministic because one caller waits for each answer and for the flusher to finish,
//! because bounds never call the flusher by themselves, and because partitions are visited in a
//! fixed order.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use millrace_engine::conformance::named;
use millrace_engine::state::StateWrite;
use millrace_engine::{EntryWrite, Lease};
use millrace_log::sim::{Fault, Image, Loss, Operation};
use millrace_model::{Clock, ManualClock};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::super::damage::change_checkpoint;
use super::super::*;
use super::model::{BEGINNING, Dump, Modules, Step, digest, module, value};
use super::stateful::Writes;
use super::transactions::{keyed, renew, request, send, work};
use crate::decide::retention::ends_segments;
use crate::keep::cleaner::Cleaner;
use crate::keep::pause::Pause;

/// A moment at which the power may fail.
#[derive(Clone)]
pub(super) struct Point {
    pub(super) image: Image,
    /// The checkpoint's database, which is on the real disk.
    pub(super) checkpoint: Option<Arc<Vec<u8>>>,
    /// The next operation.
    pub(super) before: String,
    /// The range from the last step whose result must exist to the last one whose result may exist.
    pub(super) steps: std::ops::RangeInclusive<usize>,
    /// The modules before and, during a change of one, after it.
    pub(super) modules: [Modules; 2],
}

/// Requests and answers so far.
#[derive(Default)]
struct History {
    durable: usize,
    attempted: usize,
    modules: [Modules; 2],
    points: Vec<Point>,
    last_checkpoint: Option<Arc<Vec<u8>>>,
}

/// A finished run of a script.
pub(super) struct Run {
    pub(super) name: &'static str,
    pub(super) options: LocalOptions,
    pub(super) script: Vec<Step>,
    pub(super) dir: PathBuf,
    /// The content after each step, beginning with none.
    pub(super) states: Vec<Dump>,
    pub(super) points: Vec<Point>,
    pub(super) trace_hash: u64,
}

/// A directory in memory if the machine has one, because thousands of databases are opened.
pub(super) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = tempfile::tempdir_in(memory);
    made.or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Longer than any script waits.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// Small files, and nothing happens without a request.
pub(super) fn options() -> LocalOptions {
    LocalOptions {
        reserve_bytes: 16 << 10,
        journal_file_bytes: 16 << 10,
        segment_bytes: 4 << 10,
        tail_bytes_max: 1 << 30,
        checkpoint_journal_bytes: u64::MAX,
        checkpoint_interval: FOR_EVER,
        cleaning_interval: FOR_EVER,
        ..small()
    }
}

/// Like [`options`], with state in files.
pub(super) fn paged() -> LocalOptions {
    LocalOptions {
        state_resident_bytes: Some(0),
        ..options()
    }
}

/// Runs the whole script on a disk with these faults, which must remain unnoticed.
pub(super) fn run(name: &'static str, script: &[Step], faults: &[Fault]) -> Run {
    run_bent(name, script, faults, Bug::None)
}

/// Like [`run`], with every table of state in files once a checkpoint was made.
pub(super) fn run_paged(name: &'static str, script: &[Step]) -> Run {
    run_with(name, script, &[], Bug::None, paged())
}

/// Like [`run`], with a planted bug.
pub(super) fn run_bent(name: &'static str, script: &[Step], faults: &[Fault], bug: Bug) -> Run {
    run_with(name, script, faults, bug, options())
}

/// Like [`run`], on a disk that lies.
pub(super) fn run_lying(
    name: &'static str,
    script: &[Step],
    faults: &[Fault],
    options: LocalOptions,
) -> Run {
    run_with(name, script, faults, Bug::None, options)
}

fn run_with(
    name: &'static str,
    script: &[Step],
    faults: &[Fault],
    bug: Bug,
    options: LocalOptions,
) -> Run {
    let home = directory();
    let disk = SimDisk::default();
    for fault in faults {
        disk.inject(fault.clone());
    }
    let history = Arc::new(Mutex::new(History::default()));
    keep_points(&disk, home.path(), &history);
    let mut runner = Runner::new(&disk, home.path(), &history);
    runner.bug = bug;
    runner.options = options.clone();
    let mut states = States::default();
    for (number, step) in script.iter().enumerate() {
        let done = runner.step(number + 1, step, &mut states);
        done.unwrap_or_else(|error| panic!("{name}, step {number}, {step:?}: {error}"));
    }
    disk.watch(None);
    let trace_hash = disk.trace_hash();
    let mut history = history.lock();
    let end = history.point(disk.image(), home.path(), "the end".into());
    history.points.push(end);
    Run {
        name,
        options,
        script: script.to_vec(),
        dir: home.path().to_owned(),
        states: states.each,
        points: std::mem::take(&mut history.points),
        trace_hash,
    }
}

impl Run {
    /// Changes each checkpoint of the run.
    pub(super) fn change_checkpoints(&mut self, sql: &str) {
        let home = directory();
        let path = home.path().join("checkpoint.sqlite");
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        let mut last: Option<[Arc<Vec<u8>>; 2]> = None;
        for point in &mut self.points {
            let Some(before) = point.checkpoint.take() else {
                continue;
            };
            let known = last.filter(|[known, _]| Arc::ptr_eq(known, &before));
            let pair = known.unwrap_or_else(|| {
                fs::write(&path, &**before).expect("room for the database");
                runtime.block_on(change_checkpoint(&path, sql));
                let changed = fs::read(&path).expect("the database");
                [before, Arc::new(changed)]
            });
            point.checkpoint = Some(Arc::clone(&pair[1]));
            last = Some(pair);
        }
    }

    /// The number of partitions from which messages were removed.
    pub(super) fn trimmed(&self) -> usize {
        let logs = self.states.iter().flat_map(|state| &state.logs);
        let trimmed = logs.filter(|(_, log)| log.start > Offset(0));
        trimmed
            .map(|(at, _)| at)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    }
}

/// The content after each step, beginning with none. Computed while the script runs, because it
/// depends on how far cleaners got.
struct States {
    each: Vec<Dump>,
    next_topic: u64,
}

impl Default for States {
    fn default() -> Self {
        Self {
            each: vec![Dump::default()],
            next_topic: 1,
        }
    }
}

impl States {
    /// The states before and after a step, which may be repeated.
    fn of(&mut self, number: usize, step: &Step) -> (&Dump, &mut Dump) {
        if self.each.len() == number {
            let before = &self.each[number - 1];
            let after = before.after(number as u64, step, &mut self.next_topic);
            self.each.push(after);
        }
        let [before, after] = &mut self.each[number - 1..=number] else {
            panic!("one step after the other");
        };
        (before, after)
    }
}

fn keep_points(disk: &SimDisk, dir: &Path, history: &Arc<Mutex<History>>) {
    let (dir, history) = (dir.to_owned(), Arc::clone(history));
    disk.watch(Some(Arc::new(
        move |operation: &Operation, image: &Image| {
            if operation.kind.changes_disk() {
                let mut history = history.lock();
                let what = format!(
                    "operation {}: {:?} {}",
                    operation.number,
                    operation.kind,
                    operation.path.display()
                );
                let point = history.point(image.clone(), &dir, what);
                history.points.push(point);
            }
        },
    )));
}

impl History {
    fn point(&mut self, image: Image, dir: &Path, before: String) -> Point {
        self.last_checkpoint = read_checkpoint(dir, self.last_checkpoint.take());
        Point {
            image,
            checkpoint: self.last_checkpoint.clone(),
            before,
            steps: self.durable..=self.attempted,
            modules: self.modules.clone(),
        }
    }
}

/// The bytes of a database that change with each of its transactions: among them is a counter of these.
pub(super) const DATABASE_HEAD_BYTES: usize = 100;

/// The current database; equal bytes are kept once. It is read whole only if its head has changed: there are far more operations than
/// transactions, and this is asked before each of them.
pub(super) fn read_checkpoint(dir: &Path, last: Option<Arc<Vec<u8>>>) -> Option<Arc<Vec<u8>>> {
    let path = dir.join("checkpoint.sqlite");
    if last.as_ref().is_some_and(|last| has_head_of(&path, last)) {
        return last;
    }
    let bytes = fs::read(path).ok()?;
    Some(
        last.filter(|last| **last == bytes)
            .unwrap_or_else(|| Arc::new(bytes)),
    )
}

/// Whether the database has the length and the head of these bytes.
fn has_head_of(path: &Path, bytes: &[u8]) -> bool {
    let mut head = [0; DATABASE_HEAD_BYTES];
    let read = fs::File::open(path).and_then(|mut file| {
        file.read_exact(&mut head)?;
        Ok(file.metadata()?.len())
    });
    read.is_ok_and(|length| length == bytes.len() as u64) && bytes.starts_with(&head)
}

/// Waits until the engine has nothing to do.
fn settle(engine: &LocalEngine) {
    for _ in 0..200_000 {
        let commits = &engine.commits;
        let at_rest = commits.orders.are_done() && commits.pipeline.is_at_rest();
        let at_rest = at_rest && engine.checkpoints.merges.are_idle();
        if at_rest || engine.commits.poisoned().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    panic!("the flusher does not come to rest");
}

struct Runner {
    engine: Option<Arc<LocalEngine>>,
    runtime: Runtime,
    disk: SimDisk,
    dir: PathBuf,
    history: Arc<Mutex<History>>,
    leases: Vec<Lease>,
    clock: Arc<ManualClock>,
    options: LocalOptions,
    bug: Bug,
}

impl Runner {
    fn new(disk: &SimDisk, dir: &Path, history: &Arc<Mutex<History>>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread();
        Self {
            engine: None,
            runtime: { runtime }.enable_all().build().expect("a runtime"),
            disk: disk.clone(),
            dir: dir.to_owned(),
            history: Arc::clone(history),
            leases: Vec::new(),
            clock: Arc::new(ManualClock::at(BEGINNING)),
            options: options(),
            bug: Bug::None,
        }
    }

    /// The engine; opened if it is not.
    fn engine(&mut self) -> Result<Arc<LocalEngine>, String> {
        if let Some(engine) = &self.engine {
            return Ok(Arc::clone(engine));
        }
        let on = Arc::new(self.disk.clone());
        let clock = Arc::clone(&self.clock);
        let opened = LocalEngine::open_on(on, &self.dir, self.options.clone(), clock);
        let engine = self.runtime.block_on(opened).map_err(text)?;
        settle(&engine);
        self.engine = Some(Arc::clone(&engine));
        Ok(engine)
    }

    /// Makes one step and waits for all its consequences.
    fn step(&mut self, number: usize, step: &Step, states: &mut States) -> Result<(), String> {
        let (before, after) = states.of(number, step);
        {
            let mut history = self.history.lock();
            history.attempted = number;
            match step {
                Step::PutModule(n) => drop(history.modules[1].insert(*n, module(*n))),
                Step::DeleteModule(n) => drop(history.modules[1].remove(n)),
                _ => {}
            }
        }
        self.work(number as u64, step, before)?;
        let engine = self.engine()?;
        settle(&engine);
        let mut history = self.history.lock();
        history.modules[0] = history.modules[1].clone();
        if let Step::Clean(place) = step
            && engine.commits.poisoned().is_none()
        {
            let at = before.at(*place);
            let start = engine.ends(at).map_err(text)?.start;
            let log = &after.logs[&at];
            assert!(
                (log.start..=log.start_max).contains(&start),
                "retention let {} begin at {start}, and at {} at the latest was right",
                at,
                log.start_max
            );
            after.begin_at(at, start);
        }
        if before.is_durable(step, after) && engine.commits.poisoned().is_none() {
            history.durable = number;
        }
        Ok(())
    }

    fn lease(&self, group: &str, at: TopicPartition) -> &Lease {
        let mut leases = self.leases.iter();
        let found = leases.find(|lease| lease.group.as_str() == group && lease.partition == at);
        found.expect("a claim")
    }

    fn state(
        &self,
        engine: &LocalEngine,
        number: u64,
        group: &str,
        partition: TopicPartition,
        writes: &Writes,
    ) -> Result<StateWrite, String> {
        let held = self
            .runtime
            .block_on(engine.state(&named(group), partition));
        let held = held.expect("a script's partition");
        let writes = writes.attempt(Arc::clone(&held), number, self.clock.wall());
        let writes = writes.map_err(text)?;
        assert_eq!(writes.adds, Some(held.adds(&writes).map_err(text)?));
        Ok(StateWrite {
            group: named(group),
            partition,
            lease: None,
            writes: Arc::new(writes),
        })
    }

    fn work(&mut self, number: u64, step: &Step, before: &Dump) -> Result<(), String> {
        let engine = self.engine()?;
        let runtime = &self.runtime;
        let commit = |transaction| {
            let committed = runtime.block_on(engine.commit(transaction));
            committed.map(drop).map_err(text)
        };
        match step {
            Step::Create(name, partitions, durability) => {
                let made = engine.create_topic(spec(name, *partitions, *durability), Vec::new());
                runtime.block_on(made).map(drop).map_err(text)
            }
            Step::Delete(name) => {
                let name = &before.topic(name).spec.name;
                let deleted = runtime.block_on(engine.delete_topic(name, Vec::new()));
                deleted.map(drop).map_err(text)
            }
            Step::Append(to, bytes) => {
                let value = value(number, *bytes);
                let appends = to.iter().map(|to| append(before.at(*to), &value));
                commit(Transaction::produce(appends.collect()))
            }
            Step::Keyed(place, messages) => {
                let partition = before.at(*place);
                let batch = keyed(number, messages, before.now);
                commit(Transaction::produce(vec![Append { partition, batch }]))
            }
            Step::Request(to, key, bytes) => {
                let committed =
                    runtime.block_on(engine.commit(request(number, before, to, *key, *bytes)));
                let receipt = committed.map_err(text)?;
                let known = before.answered(to, *key);
                assert_eq!(receipt.repeated, known.is_some(), "step {number}");
                if let Some(known) = known {
                    assert_eq!(receipt.base_offsets, known.offsets, "step {number}");
                    assert_eq!(receipt.note, known.number.to_string(), "step {number}");
                }
                Ok(())
            }
            Step::Producer(name) => {
                let given = runtime.block_on(engine.init_producer(*name));
                given.map(drop).map_err(text)
            }
            Step::Send(name, to, again) => {
                let sending = before.sending(name, *to, *again);
                let transaction = send(number, &sending, before.at(*to));
                let receipt = runtime.block_on(engine.commit(transaction));
                let receipt = receipt.map_err(text)?;
                let stood_at = receipt.base_offsets.first().copied();
                let stood_at = stood_at.filter(|_| receipt.repeated);
                assert_eq!(stood_at, sending.stands_at, "step {number}");
                Ok(())
            }
            Step::Change(name, change) => {
                let name = &before.topic(name).spec.name;
                let changed = runtime.block_on(engine.change_topic(name, change.clone()));
                changed.map(drop).map_err(text)
            }
            Step::Trim(place, count) => {
                let start = before.trimmed(*place, *count);
                let trimmed = runtime.block_on(engine.trim(before.at(*place), start));
                assert_eq!(trimmed.map_err(text)?, start, "step {number}");
                Ok(())
            }
            Step::Clean(place) => clean(&engine, before.at(*place)),
            Step::Sweep => {
                cleaner(&engine).remove_ended();
                match engine.commits.poisoned() {
                    Some(poisoned) => Err(text(poisoned)),
                    None => Ok(()),
                }
            }
            Step::Wait(ms) => {
                self.clock.advance(Duration::from_millis(*ms));
                Ok(())
            }
            Step::Claim(group, topic, partition) => {
                let at = before.at((topic, *partition));
                let claimed = runtime.block_on(engine.claim(&named(group), at));
                let lease = claimed.map_err(text)?.lease;
                assert_eq!(lease.epoch, before.epoch(group, at) + 1);
                self.leases
                    .retain(|l| l.group != lease.group || l.partition != at);
                self.leases.push(lease);
                Ok(())
            }
            Step::Work(group, input, output) => {
                let lease = self.lease(group, before.at(*input));
                commit(work(number, lease, before.at(*output)))
            }
            Step::Count(group, input, output, place, writes) => {
                let lease = self.lease(group, before.at(*input));
                let mut transaction = work(number, lease, before.at(*output));
                let mut state = self.state(&engine, number, group, before.at(*place), writes)?;
                state.lease = Some(lease.clone());
                transaction.state = vec![state];
                let transactions = self.bug.bend(transaction);
                transactions.into_iter().try_for_each(commit)
            }
            Step::Write(group, place, writes) => commit(Transaction {
                state: vec![self.state(&engine, number, group, before.at(*place), writes)?],
                durability: Some(Durability::Durable),
                ..Transaction::default()
            }),
            Step::Renew(group, topic) => commit(renew(number, group, before.topic(topic))),
            Step::Entry(kind, key, bytes) => commit(Transaction {
                entries: vec![EntryWrite {
                    kind: *kind,
                    key: (*key).to_owned(),
                    value: bytes.map(|bytes| vec![7; bytes].into()),
                }],
                durability: Some(Durability::Durable),
                ..Transaction::default()
            }),
            Step::PutModule(n) => {
                let put = engine.put_module(digest(*n), module(*n));
                runtime.block_on(put).map_err(text)
            }
            Step::DeleteModule(n) => {
                let deleted = engine.delete_module(digest(*n), Vec::new());
                runtime.block_on(deleted).map_err(text)
            }
            Step::Flush => {
                engine.commits.orders.ask(|orders| orders.flush = true);
                Ok(())
            }
            Step::Checkpoint => {
                engine.commits.orders.ask(|orders| orders.checkpoint = true);
                Ok(())
            }
            Step::Restart => {
                self.engine = None;
                drop(engine);
                self.engine().map(drop)
            }
            Step::Reopen => {
                self.engine = None;
                runtime.block_on(engine.close());
                drop(engine);
                self.engine().map(drop)
            }
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Cleans one partition like the cleaner's thread. If the disk refuses it, it is retried another
/// time.
fn cleaner(engine: &LocalEngine) -> Cleaner {
    let queue = engine.queue.as_ref().expect("an open engine").downgrade();
    let (commits, room) = (Arc::clone(&engine.commits), Arc::clone(&engine.queue_room));
    let checkpoints = Arc::clone(&engine.checkpoints);
    Cleaner::new(
        commits,
        checkpoints,
        queue,
        room,
        Arc::new(Pause::default()),
    )
}

fn clean(engine: &LocalEngine, at: TopicPartition) -> Result<(), String> {
    let cleaner = cleaner(engine);
    let partition = engine.partition(at).map_err(text)?;
    let settings = partition.settings();
    let cleaned = cleaner.look_at(&partition, &settings);
    if ends_segments(&settings) {
        // One after the other, so that the disk sees the same operations every time.
        settle(engine);
        engine.commits.orders.ask(|orders| orders.roll = true);
    }
    match (engine.commits.poisoned(), cleaned) {
        (Some(poisoned), _) => Err(text(poisoned)),
        (None, Err(error)) if millrace_log::disk::is_full(&error) => Err("the disk is full".into()),
        _ => Ok(()),
    }
}

/// The result of a script on a failing disk.
pub(super) struct Ended {
    /// The run, with one point: its end.
    pub(super) run: Run,
    pub(super) disk: SimDisk,
    /// The step that failed, and how it did.
    pub(super) failed: Option<(usize, String)>,
    /// The directory, with the database.
    pub(super) home: TempDir,
}

/// Runs the script until a step fails permanently. After a full disk, space is freed and the step
/// is repeated.
pub(super) fn run_until_failure(script: &[Step], fault: Fault, options: LocalOptions) -> Ended {
    let home = directory();
    let disk = SimDisk::default();
    disk.inject(fault);
    let history = Arc::new(Mutex::new(History::default()));
    let mut runner = Runner::new(&disk, home.path(), &history);
    runner.options = options.clone();
    let mut states = States::default();
    let mut failed = None;
    for (number, step) in script.iter().enumerate() {
        let mut done = runner.step(number + 1, step, &mut states);
        for _ in 0..40 {
            let full = done.as_ref().is_err_and(|error| error.contains("is full"));
            if !full {
                break;
            }
            disk.heal();
            std::thread::sleep(Duration::from_millis(25));
            done = runner.step(number + 1, step, &mut states);
        }
        if let Err(error) = done {
            failed = Some((number + 1, error));
            break;
        }
    }
    drop(runner);
    let point = history
        .lock()
        .point(disk.image(), home.path(), "the end".into());
    let run = Run {
        name: "on a failing disk",
        options,
        script: script.to_vec(),
        dir: home.path().to_owned(),
        states: states.each,
        points: vec![point],
        trace_hash: disk.trace_hash(),
    };
    Ended {
        run,
        disk,
        failed,
        home,
    }
}

/// Planted bugs, which the checks must find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Bug {
    #[default]
    None,
    /// State is committed separately, before progress and outputs.
    StateFirst,
    /// State is committed separately, after them.
    StateLast,
}

impl Bug {
    fn bend(self, mut transaction: Transaction) -> Vec<Transaction> {
        if self == Self::None {
            return vec![transaction];
        }
        let state = Transaction {
            state: std::mem::take(&mut transaction.state),
            ..Transaction::default()
        };
        match self {
            Self::StateFirst => vec![state, transaction],
            _ => vec![transaction, state],
        }
    }
}

impl Point {
    /// The point in its own directory, without loss: only the process ended.
    pub(super) fn moved(&self, from: &Path, to: &Path) -> Self {
        let mut moved = self.clone();
        moved.image.relocate(from, to);
        moved.image.close_all();
        moved
    }

    /// Puts the point, after the loss, on its own disk and directory; returns a fingerprint.
    pub(super) fn lose(&self, loss: Loss, from: &Path, to: &Path) -> (Self, u64) {
        let mut lost = self.clone();
        lost.image.lose_power(loss);
        let fingerprint = lost.image.durable_fingerprint();
        lost.image.relocate(from, to);
        (lost, fingerprint)
    }
}
