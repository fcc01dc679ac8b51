//! One crash point, one loss: recovers, compares, crashes the recovery, compares again.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::AddAssign;

use millrace_log::sim::{Image, Loss, Operation};
use millrace_model::{ManualClock, ProducerId};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::super::*;
use super::found::modules_of;
use super::model::{BEGINNING, Dump, Modules, Sending};
use super::run::{DATABASE_HEAD_BYTES, Point, Run, directory, read_checkpoint};
use super::transactions::{mark, send};
use crate::start::recovery::{Recovered, recover};

/// For one in this many crash points, the recovery is crashed at every operation; for all others at
/// one, chosen by seed.
const ALL_INNER_POINTS_ONE_IN: u64 = 64;
/// For one in this many, the power also fails right after the recovery.
const AGAIN_ONE_IN: u64 = 2;
/// One in this many is opened completely and continues; a multiple of the previous number.
const GO_ON_ONE_IN: u64 = 16;

/// Counts of a run.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    points: u64,
    first: u64,
    after_crashed_recovery: u64,
    again: u64,
    went_on: u64,
    /// Recoveries without some superseded messages.
    pub(super) compacted: u64,
}

impl Tally {
    pub(super) fn recoveries(&self) -> u64 {
        self.first + self.after_crashed_recovery + self.again
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.points += more.points;
        self.first += more.first;
        self.after_crashed_recovery += more.after_crashed_recovery;
        self.again += more.again;
        self.went_on += more.went_on;
        self.compacted += more.compacted;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} recoveries ({} of different remains of {} crash points, {} after a crash while recovering, {} once more), \
             {} went on working, {} were compacted",
            self.recoveries(),
            self.first,
            self.points,
            self.after_crashed_recovery,
            self.again,
            self.went_on,
            self.compacted
        )
    }
}

/// Recovers in its own directory.
pub(super) struct Worker<'a> {
    run: &'a Run,
    /// Fingerprints of remains that were already recovered: equal ones need not be repeated.
    seen: &'a Mutex<HashSet<u64>>,
    home: TempDir,
    pub(super) tally: Tally,
}

/// The result of a recovery.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Found {
    dump: Dump,
    modules: Modules,
}

impl<'a> Worker<'a> {
    pub(super) fn new(run: &'a Run, seen: &'a Mutex<HashSet<u64>>) -> Self {
        Self {
            run,
            seen,
            home: directory(),
            tally: Tally::default(),
        }
    }

    pub(super) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(super) fn crash_at(&mut self, point: &Point, place: u64, random_losses: u64) {
        self.tally.points += 1;
        let random = (0..random_losses).map(|n| Loss::random(place * 1_000 + n));
        for loss in Loss::NAMED.into_iter().chain(random) {
            let (remains, fingerprint) = point.lose(loss, &self.run.dir, self.home.path());
            let mut hasher = DefaultHasher::new();
            let checkpoint = point.checkpoint.as_deref();
            (fingerprint, checkpoint, &point.steps, &point.modules).hash(&mut hasher);
            let number = hasher.finish();
            if !self.seen.lock().insert(number) {
                continue;
            }
            let what = format!("{}, before {}, {loss:?}", self.run.name, point.before);
            self.explore(&remains, number, &what);
        }
    }

    pub(super) fn explore(&mut self, remains: &Point, number: u64, what: &str) {
        let (found, inner) = self.recover(remains, what);
        self.tally.first += 1;
        self.compare(remains, &found, what);
        // Until a recovery has ended, data that only the page cache had may be lost in the next
        // power cut.
        let durable = remains.image.is_settled();
        let count = inner.len() as u64 - 1;
        let all = number.is_multiple_of(ALL_INNER_POINTS_ONE_IN);
        for (place, point) in (0..count).zip(&inner) {
            if !all && place != number % count {
                continue;
            }
            let loss = match number.wrapping_add(place) % 4 {
                0 => Loss::NAMED[1],
                _ => Loss::random(number.wrapping_add(place)),
            };
            let (remains, _) = point.lose(loss, self.home.path(), self.home.path());
            let what = format!("{what}; and, recovering, before {}, {loss:?}", point.before);
            let again = self.recover_again(&remains, &what);
            self.tally.after_crashed_recovery += 1;
            if durable {
                assert_eq!(again, found, "{what}");
            } else {
                self.compare(point, &again, &what);
            }
        }
        if !number.is_multiple_of(AGAIN_ONE_IN) {
            return;
        }
        let (end, _) =
            inner[inner.len() - 1].lose(Loss::NAMED[1], self.home.path(), self.home.path());
        let what = format!("{what}; recovered, and the power failed right then");
        let again = self.recover_again(&end, &what);
        self.tally.again += 1;
        if durable {
            assert_eq!(again, found, "{what}");
        } else {
            // Messages removed by a running compaction may reappear: they are still superseded.
            let same = again.dump.uncompacted() == found.dump.uncompacted();
            assert!(
                same && again.modules == found.modules,
                "{what}: {again:?}, before {found:?}"
            );
            self.compare(remains, &again, &what);
        }
        if number.is_multiple_of(GO_ON_ONE_IN) {
            self.go_on(&end, &again, &what);
        }
    }

    /// Checks that the content is that after some step, so nothing has a hole, is out of order,
    /// torn, or duplicated.
    fn compare(&mut self, point: &Point, found: &Found, what: &str) {
        let states = &self.run.states;
        let now = states[*point.steps.end()].now;
        let is_like = |state: &&Dump| found.dump.is_like(state, now);
        if let Some(state) = states[point.steps.clone()].iter().find(is_like) {
            self.tally.compacted += u64::from(found.dump.compacted_away(state) > 0);
        } else {
            let after = states.iter().position(|state| is_like(&state));
            panic!(
                "{what}: after one of the steps {:?} was to be found, not after {after:?}. Steps: {:?}\nfound: {:?}\nat \
                 least: {:?}",
                point.steps,
                self.run.script,
                found.dump,
                states[*point.steps.start()],
            );
        }
        assert!(
            point.modules.contains(&found.modules),
            "{what}: modules {:?}",
            found.modules
        );
    }

    /// Recovers without the engine's threads; returns the result and the recovery's own crash
    /// points, the last of which is its end.
    fn recover(&self, remains: &Point, what: &str) -> (Found, Vec<Point>) {
        let disk = self.put(remains);
        let inner = self.keep_points(&disk, remains);
        let found = self.recover_on(&disk, what);
        let mut inner = std::mem::take(&mut *inner.lock());
        let end = self.point(remains, disk.image(), None, "the end".to_owned());
        let last = inner.last().and_then(|last| last.checkpoint.as_ref());
        if let (Some(last), Some(end)) = (last, &end.checkpoint) {
            let head = |bytes: &[u8]| bytes[..DATABASE_HEAD_BYTES].to_vec();
            assert!(
                head(last) != head(end) || last == end,
                "{what}: the database changed, and its head did not"
            );
        }
        inner.push(end);
        (found, inner)
    }

    /// Recovers where nobody asks for the crash points.
    fn recover_again(&self, remains: &Point, what: &str) -> Found {
        self.recover_on(&self.put(remains), what)
    }

    fn recover_on(&self, disk: &SimDisk, what: &str) -> Found {
        let recovered = recover(
            Arc::new(disk.clone()),
            self.home.path(),
            &self.run.options,
            Arc::new(ManualClock::at(BEGINNING)),
        );
        let recovered = recovered.unwrap_or_else(|error| panic!("{what}: {error}"));
        disk.watch(None);
        let found = Found {
            dump: Dump::of(&recovered),
            modules: modules_of(&recovered),
        };
        assert_no_leftovers(disk, &recovered, what);
        found
    }

    fn keep_points(&self, disk: &SimDisk, remains: &Point) -> Arc<Mutex<Vec<Point>>> {
        let points = Arc::new(Mutex::new(Vec::<Point>::new()));
        let (kept, home) = (Arc::clone(&points), self.home.path().to_owned());
        let model = (remains.steps.clone(), remains.modules.clone());
        disk.watch(Some(Arc::new(
            move |operation: &Operation, image: &Image| {
                if operation.kind.changes_disk() {
                    let mut kept = kept.lock();
                    let last = kept.last().and_then(|last| last.checkpoint.clone());
                    kept.push(Point {
                        image: image.clone(),
                        checkpoint: read_checkpoint(&home, last),
                        before: format!("{:?} {}", operation.kind, operation.path.display()),
                        steps: model.0.clone(),
                        modules: model.1.clone(),
                    });
                }
            },
        )));
        points
    }

    fn point(
        &self,
        remains: &Point,
        image: Image,
        last: Option<Arc<Vec<u8>>>,
        before: String,
    ) -> Point {
        Point {
            image,
            checkpoint: read_checkpoint(self.home.path(), last),
            before,
            steps: remains.steps.clone(),
            modules: remains.modules.clone(),
        }
    }

    /// The remains as a disk, with the database beside it.
    fn put(&self, remains: &Point) -> SimDisk {
        let path = self.home.path().join("checkpoint.sqlite");
        // A new file, because the old one may still be open.
        let _ = fs::remove_file(&path);
        if let Some(bytes) = &remains.checkpoint {
            fs::write(&path, &**bytes).expect("room for the database");
        }
        SimDisk::with_image(remains.image.clone())
    }

    /// Opens the whole engine on it, writes more, and checks that this survives another power cut.
    fn go_on(&mut self, remains: &Point, found: &Found, what: &str) {
        let disk = self.put(remains);
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        let name = TopicName::parse("later").unwrap();
        runtime.block_on(async {
            let clock = Arc::new(ManualClock::at(BEGINNING));
            let on = Arc::new(disk.clone());
            let engine =
                LocalEngine::open_on(on, self.home.path(), self.run.options.clone(), clock).await;
            let engine = engine.unwrap_or_else(|error| panic!("{what}: {error}"));
            let later = engine
                .create_topic(spec("later", 1, Durability::Durable), Vec::new())
                .await
                .unwrap();
            produce(&engine, at(&later, 0), "1 later").await.unwrap();
            repeat_all(&engine, &found.dump, what).await;
            for repeated in [false, true] {
                let transaction = Transaction {
                    request: Some(mark(later.id, 1, 1)),
                    ..Transaction::produce(vec![append(at(&later, 0), "1 later")])
                };
                let receipt = engine.commit(transaction).await.unwrap();
                assert_eq!(receipt.repeated, repeated, "{what}, then went on");
                assert_eq!(receipt.base_offsets, [Offset(1)]);
            }
            drop(engine);
        });
        disk.cut_power();
        disk.restore_power_after(Loss::NAMED[1]);
        let recovered = recover(
            Arc::new(disk),
            self.home.path(),
            &self.run.options,
            Arc::new(ManualClock::at(BEGINNING)),
        );
        let recovered = recovered.unwrap_or_else(|error| panic!("{what}, then went on: {error}"));
        let mut dump = Dump::of(&recovered).without(&name);
        dump.moment = found.dump.moment;
        assert_eq!(dump, found.dump, "{what}, then went on");
        let later = recovered.state.topic(&name).expect("what came later");
        let end = recovered.state.partitions[&at(&later, 0)].end();
        assert_eq!(end, Offset(2), "{what}, then went on");
        self.tally.went_on += 1;
    }
}

/// Repeats every remembered request: each must get its first answer.
async fn repeat_all(engine: &LocalEngine, found: &Dump, what: &str) {
    for (&(topic, key), answered) in &found.requests {
        if found.is_old(answered) {
            continue;
        }
        let partition = TopicPartition {
            topic,
            partition: PartitionId(0),
        };
        let transaction = Transaction {
            request: Some(mark(topic, key, 0)),
            ..Transaction::produce(vec![append(partition, "0 again")])
        };
        let receipt = engine.commit(transaction).await;
        let receipt = receipt.unwrap_or_else(|error| panic!("{what}, sent again: {error}"));
        assert!(
            receipt.repeated,
            "{what}, then request {key} was sent again"
        );
        assert_eq!(receipt.base_offsets, answered.offsets, "{what}");
        assert_eq!(receipt.note, answered.number.to_string(), "{what}");
    }
    for (&(at, id), (epoch, sent)) in &found.sent {
        let newest = found.named.values().find(|producer| producer.id == id);
        let producer = ProducerId { id, epoch: *epoch };
        if newest != Some(&producer) {
            continue;
        }
        for &(sequence, offset) in sent {
            let sending = Sending {
                producer,
                sequence,
                stands_at: Some(offset),
            };
            let receipt = engine.commit(send(0, &sending, at)).await;
            let receipt = receipt.unwrap_or_else(|error| panic!("{what}, sent again: {error}"));
            assert!(receipt.repeated, "{what}, then {sequence} was sent again");
            assert_eq!(receipt.base_offsets, [offset], "{what}");
        }
    }
}

/// Checks that nothing is left over: no directory of an unknown topic, no segment below a
/// partition's start, no unfinished file.
fn assert_no_leftovers(disk: &SimDisk, recovered: &Recovered, what: &str) {
    let known: Vec<String> = recovered
        .state
        .topics()
        .iter()
        .map(|t| t.id.to_string())
        .collect();
    for dir in disk.dirs() {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let in_topics = dir
            .parent()
            .is_some_and(|parent| parent.ends_with("topics"));
        assert!(
            !in_topics || known.contains(&name.into_owned()),
            "{what}: {} belongs to no topic",
            dir.display()
        );
    }
    for path in disk.paths() {
        let unfinished = path.extension().is_some_and(|end| end == "unfinished");
        assert!(!unfinished, "{what}: {} stayed", path.display());
    }
    assert_runs_are_named(disk, recovered, what);
    for (id, partition) in &recovered.state.partitions {
        let files = partition.files.read();
        for segment in files.sealed_segments() {
            let below = segment.end <= partition.start();
            assert!(!below, "{what}: {id} keeps a segment below its start");
        }
    }
}

/// Checks that the existing runs of state are exactly those that tables read.
fn assert_runs_are_named(disk: &SimDisk, recovered: &Recovered, what: &str) {
    let is_run = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "run");
    let there: Vec<_> = disk.paths().into_iter().filter(is_run).collect();
    let named = recovered.saver.named_runs();
    assert_eq!(there.len(), named, "{what}: {there:?}");
}
