//! A background thread that looks for damage in stored data, and records it.
//!
//! Damage that a reader meets is recorded at once ([`register`]); the thread then reads the whole
//! segment, so that the record has the exact offsets and bytes. It also reads everything, round
//! after round, at a bounded rate ([`scrub`]).

pub(crate) mod keep;
pub(crate) mod register;
mod scrub;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use millrace_engine::contract::ReadError;
use millrace_engine::damage::{DamageKind, DamageReport, FoundBy, ScrubStatus};
use millrace_log::Disk;
use millrace_log::pace::Pace;
use millrace_model::{Digest, Offset, TopicPartition};
use parking_lot::{Condvar, Mutex};

use self::keep::Keep;
use self::register::Register;
use self::scrub::Round;
use crate::ground::options::SCRUB_BYTES_PER_SECOND;
use crate::keep::checkpoints::Checkpoints;
use crate::keep::modules::ModuleFiles;
use crate::write::commits::Commits;

/// How often the thread checks for work.
const TICK: Duration = Duration::from_secs(1);

/// What the thread and the engine's callers share.
pub(crate) struct Care {
    commits: Arc<Commits>,
    checkpoints: Arc<Checkpoints>,
    disk: Arc<dyn Disk>,
    /// The data directory; records name files relative to it.
    dir: PathBuf,
    modules: Arc<ModuleFiles>,
    register: Register,
    /// Present while the thread runs.
    keep: Mutex<Option<Keep>>,
    scrub: Mutex<Scrub>,
    bytes: AtomicU64,
    stopping: AtomicBool,
    rung: Mutex<bool>,
    changed: Condvar,
}

#[derive(Default)]
struct Scrub {
    status: ScrubStatus,
    /// When the next read may be made, on the monotonic clock.
    free_at: Duration,
    /// When durable progress was last recorded, on the same clock.
    noted_at: Duration,
}

impl Care {
    pub(crate) fn new(
        commits: Arc<Commits>,
        checkpoints: Arc<Checkpoints>,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        modules: Arc<ModuleFiles>,
    ) -> Arc<Self> {
        let stored = commits.state.read();
        let entries = stored
            .entries
            .of(millrace_engine::EntryKind::Damage)
            .values();
        let register = Register::of(entries.map(|entry| &entry.value));
        drop(stored);
        let status = ScrubStatus {
            bytes_per_second: commits.options.scrub_bytes_per_second,
            ..ScrubStatus::default()
        };
        Arc::new(Self {
            commits,
            checkpoints,
            disk,
            dir,
            modules,
            register,
            keep: Mutex::new(None),
            scrub: Mutex::new(Scrub {
                status,
                ..Scrub::default()
            }),
            bytes: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            rung: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// Starts the thread.
    pub(crate) fn start(self: &Arc<Self>, keep: Keep) -> io::Result<JoinHandle<()>> {
        *self.keep.lock() = Some(keep);
        let care = Arc::clone(self);
        crate::ground::threads::named("millrace-care", move || care.run())
    }

    /// Tells the thread to end; it does so after its current read.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.ring();
    }

    fn ring(&self) {
        *self.rung.lock() = true;
        self.changed.notify_all();
    }

    /// Whether the thread should end. A failed engine reads nothing any more, and each file would
    /// log an error.
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.commits.poisoned().is_some()
    }

    /// The known damage.
    pub(crate) fn report(&self) -> DamageReport {
        let status = self.scrub.lock().status;
        DamageReport {
            ranges: self.register.ranges(),
            modules: self.register.modules(),
            state: self.register.state(),
            scrub: Some(ScrubStatus {
                bytes: self.bytes.load(Ordering::Relaxed),
                ..status
            }),
        }
    }

    /// Records damage that a reader met.
    pub(crate) fn note(&self, error: &ReadError) {
        match *error {
            ReadError::Damaged {
                partition,
                from,
                to,
                kind,
            } => self.suspect(partition, from..to, kind),
            ReadError::ModuleDamaged(digest) => self.note_module(digest, true),
            _ => {}
        }
    }

    fn suspect(&self, partition: TopicPartition, met: Range<Offset>, kind: DamageKind) {
        let file = self.segments(partition).into_iter().find(|segment| {
            let offsets = &segment.offsets;
            offsets.start < met.end && met.start < offsets.end
        });
        let file = file.map_or_else(String::new, |segment| self.name(&segment.path));
        let found_at = self.commits.clock.wall();
        let found = register::Met {
            partition,
            from: met.start,
            to: met.end,
            kind,
            file,
            found_at,
            found_by: FoundBy::Read,
        };
        if self.register.suspect(found) {
            self.ring();
        }
    }

    pub(crate) fn note_module(&self, digest: Digest, damaged: bool) {
        self.register.note_module(digest, damaged);
    }

    pub(crate) fn register(&self) -> &Register {
        &self.register
    }

    fn run(self: &Arc<Self>) {
        let care = Arc::clone(self);
        let pace: Pace = Arc::new(move |bytes| care.pause(bytes));
        let mut round = Round::default();
        millrace_log::pace::lower_priority();
        while !self.is_stopping() {
            self.look_at_suspects(&pace);
            self.tend();
            if !self.go_on(&mut round, &pace) {
                self.wait(TICK);
            }
        }
        self.tend();
        self.keep.lock().take();
    }

    /// Does the periodic work, however busy the thread is.
    fn tend(&self) {
        self.forget_what_is_gone();
        self.note_durable();
        if let Some(keep) = &*self.keep.lock() {
            keep.write(&self.register);
        }
    }

    /// Records what is durable; rarely, because it takes the journal's lock.
    fn note_durable(&self) {
        let now = self.commits.clock.monotonic();
        let due = {
            let mut scrub = self.scrub.lock();
            let due = now >= scrub.noted_at + TICK;
            if due {
                scrub.noted_at = now;
            }
            due
        };
        if due && self.commits.options.notes_durable {
            self.checkpoints.note_durable(false);
        }
    }

    /// Forgets records of deleted topics and of offsets that are no longer kept.
    fn forget_what_is_gone(&self) {
        if self.register.is_empty() {
            return;
        }
        let state = self.commits.state.read();
        self.register.keep_only(|range| {
            let partition = state.partitions.get(&range.partition);
            partition.is_some_and(|partition| partition.ends().start < range.to)
        });
    }

    /// Waits until this many more bytes may be read.
    fn pause(&self, bytes: u64) -> io::Result<()> {
        // Even without a background search, damage met by readers is examined, at the usual rate.
        let rate = match self.commits.options.scrub_bytes_per_second {
            0 => SCRUB_BYTES_PER_SECOND,
            rate => rate,
        };
        let free_at = {
            let mut scrub = self.scrub.lock();
            let free_at = scrub.free_at.max(self.commits.clock.monotonic());
            scrub.free_at = free_at + Duration::from_secs_f64(bytes as f64 / rate as f64);
            free_at
        };
        loop {
            if self.is_stopping() {
                return Err(io::Error::other("the engine is closing"));
            }
            let now = self.commits.clock.monotonic();
            if now >= free_at {
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                metrics::counter!("millrace_scrub_bytes_total").increment(bytes);
                return Ok(());
            }
            self.wait((free_at - now).min(TICK));
            self.tend();
        }
    }

    /// Waits this long, or until it is woken.
    fn wait(&self, patience: Duration) {
        let mut rung = self.rung.lock();
        if !*rung {
            self.changed.wait_for(&mut rung, patience);
        }
        *rung = false;
    }
}
