//! What clients did and saw, in the order in which they noted it: one line of JSON each, appended,
//! never changed. The broker writes nothing here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::value::{self, FOREIGN, Id};

/// One note in a history.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The rules for checking this history.
    Rules(Rules),
    /// A producer sends messages `first..first + count` in one request.
    Invoke {
        /// The producer.
        producer: u32,
        /// The sequence of the first message.
        first: u64,
        /// The number of messages.
        count: u32,
        /// The topic.
        topic: String,
        /// Whether the request has a key, so that the host must store it only once, however often
        /// it is sent.
        once: bool,
    },
    /// When these messages are to be delivered, in milliseconds since the Unix epoch. Noted before
    /// they are sent.
    Due {
        /// The producer.
        producer: u32,
        /// The sequence of the first message.
        first: u64,
        /// The time of each message, in milliseconds since the Unix epoch.
        due_ms: Vec<u64>,
    },
    /// The time of day. A client notes it between seeing something and noting what it saw: what
    /// follows was there by this time.
    Clock {
        /// Milliseconds since the Unix epoch.
        now_ms: u64,
    },
    /// A schedule was created.
    Scheduled {
        /// The time between two messages. They are due at its multiples since the Unix epoch.
        every_ms: u64,
        /// A time by which it had been made.
        since_ms: u64,
    },
    /// All messages that the schedule has made.
    Ticks {
        /// When they were asked for.
        asked_ms: u64,
        /// The messages.
        ticks: Vec<Tick>,
        /// Whether this belongs to the last reading of everything.
        last: bool,
    },
    /// Something was done with a revision on trial.
    Trial {
        /// What was requested.
        what: Trial,
    },
    /// A backup was taken while everything continued.
    Backup {
        /// How it ended.
        what: Copied,
        /// Why it is incomplete, or was not checked.
        #[serde(default)]
        why: String,
    },
    /// The request was acknowledged, with the partition and offset of each message ([`DELAYED`] for
    /// a delayed one).
    Ok {
        /// The producer.
        producer: u32,
        /// The sequence of the first message.
        first: u64,
        /// The positions of the messages.
        placed: Vec<(u32, u64)>,
    },
    /// The request was refused: nothing was written.
    Fail {
        /// The producer.
        producer: u32,
        /// The sequence of the first message.
        first: u64,
        /// The host's answer.
        why: String,
    },
    /// The outcome of the request is unknown.
    Info {
        /// The producer.
        producer: u32,
        /// The sequence of the first message.
        first: u64,
        /// What was observed instead of an answer.
        why: String,
    },
    /// Messages were read.
    Read {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The messages.
        messages: Vec<Seen>,
        /// Whether this belongs to the last reading of everything, from start to end.
        last: bool,
    },
    /// A partition's start and end.
    Ends {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The first offset kept.
        start: u64,
        /// The offset that the next message will have.
        end: u64,
        /// Whether it was read right after a start, before clients were let in.
        recovered: bool,
    },
    /// A trim is asked for: the partition is to begin at this offset.
    Trim {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The first offset to keep.
        before: u64,
    },
    /// The trim was done.
    Trimmed {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The first offset kept.
        start: u64,
    },
    /// A processor's progress.
    Progress {
        /// The address of the host that told it: of several hosts, one may know less than another.
        #[serde(default)]
        host: String,
        /// The processor.
        processor: String,
        /// The input topic.
        topic: String,
        /// The input partition.
        partition: u32,
        /// The next offset to read.
        next: u64,
    },
    /// The counts in a processor's state, by key (`producer/number`).
    State {
        /// The processor.
        processor: String,
        /// The input partition.
        partition: u32,
        /// The counts.
        counts: BTreeMap<String, i64>,
        /// Whether this belongs to the last reading of everything.
        last: bool,
    },
    /// All dead letters that had not been sent again at the end.
    Standing {
        /// The processor.
        processor: String,
        /// The dead letters.
        letters: Vec<Seen>,
    },
    /// A fault was injected.
    Fault {
        /// Its kind.
        kind: Fault,
        /// Details for people.
        how: String,
        /// Whether data that was only in the page cache may be lost.
        forgets: bool,
    },
    /// The last fault was aimed at a step, and met it.
    Met {
        /// The kind of the fault.
        kind: Fault,
        /// The step.
        step: Step,
    },
    /// The host serves again.
    Started {
        /// The duration in milliseconds.
        after_ms: u64,
    },
    /// The host does not start.
    NotStarted {
        /// Its error.
        why: String,
    },
    /// The last fault is over and clients send nothing more: everything accepted must now get
    /// processed.
    Calm,
    /// Everything was processed.
    Drained {
        /// The duration in milliseconds.
        after_ms: u64,
    },
    /// Not everything was processed in time.
    NotDrained {
        /// What is left.
        why: String,
    },
    /// A fault did not have the effect that it must have.
    Unexpected {
        /// What did not happen.
        what: String,
    },
}

/// The rules by which a history is judged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rules {
    /// The seed of all random numbers.
    pub seed: u64,
    /// The topics.
    pub topics: Vec<TopicRule>,
    /// The processors.
    pub pipelines: Vec<Pipeline>,
    /// Whether several hosts share the store: they hear of each other's messages late, and take work over only after a while.
    #[serde(default)]
    pub several: bool,
}

/// Stands in place of an offset for a message that is accepted but not delivered yet.
pub const DELAYED: u64 = u64::MAX;

/// A message that a schedule created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// Its offset.
    pub offset: u64,
    /// Its time.
    pub due_ms: u64,
    /// How many earlier times it stands for besides its own.
    pub missed: u64,
}

/// Events of a revision on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trial {
    /// It gets a share of the keys.
    Begun,
    /// Its share is changed.
    Shared,
    /// The canary became the current revision.
    Promoted,
    /// The canary was withdrawn.
    Withdrawn,
}

/// How a backup ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copied {
    /// The backup is complete.
    Taken,
    /// The backup ended early, because the host suffered a fault or refused it.
    BrokenOff,
    /// A host started on it, and what that host showed was judged.
    Judged,
    /// It could not be judged, for reasons outside the host.
    Unjudged,
}

/// What a topic promises.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TopicRule {
    /// Its name.
    pub name: String,
    /// Whether acknowledged messages survive a loss of power; otherwise they survive only the end
    /// of the process.
    pub durable: bool,
    /// Whether producers send to it; otherwise a processor does.
    pub produced: bool,
    /// Which of its messages may be removed over time.
    #[serde(default)]
    pub ages: Ages,
    /// Whether its messages are delayed, each until its own time.
    #[serde(default)]
    pub delays: bool,
}

/// How messages of a topic are removed as intended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ages {
    /// None is removed.
    #[default]
    Never,
    /// Those before the offsets that trims asked for.
    WhenTrimmed,
    /// The oldest, by the topic's settings.
    ByRetention,
    /// Those whose key has a later message, and eventually those that remove their key. A
    /// producer's messages of equal sequence modulo `keys` share a key.
    ByCompaction {
        /// The number of keys of one producer.
        keys: u64,
        /// One in this many messages of a key removes it; 0: none does.
        #[serde(default)]
        removes_every: u64,
    },
}

/// Whether a producer's message removes its key in a topic with [`Ages::ByCompaction`].
#[must_use]
pub fn removes_key(sequence: u64, keys: u64, removes_every: u64) -> bool {
    let number = (sequence / keys.max(1)).checked_rem(removes_every);
    number.is_some_and(|number| number + 1 == removes_every)
}

/// A processor: each of its inputs ends in exactly one of two topics.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pipeline {
    /// Its name.
    pub processor: String,
    /// Its input topic.
    pub input: String,
    /// Its output topic.
    pub output: String,
    /// Its dead-letter topic.
    pub dead_letters: String,
    /// A producer's messages of equal sequence modulo this have the same key, and keep their order.
    pub keys: u64,
    /// Whether its state counts the outputs of each key.
    #[serde(default)]
    pub counts: bool,
    /// Whether its dead letters are redriven.
    #[serde(default)]
    pub redrives: bool,
}

/// A message as read: offset, producer, sequence, hash of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen(pub u64, pub u32, pub u64, pub u64);

impl Seen {
    /// A message read with this value at this offset.
    #[must_use]
    pub fn new(offset: u64, value: &str) -> Self {
        let id = value::parse(value).unwrap_or_else(|| Id::new(FOREIGN, 0));
        let hash = value::hash(value.as_bytes());
        Self(offset, id.producer, id.sequence, hash)
    }

    /// The id of the value.
    #[must_use]
    pub fn id(&self) -> Id {
        Id::new(self.1, self.2)
    }
}

/// The faults that are injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// `kill -9`.
    Kill,
    /// The file system stops, and what it had not written is lost.
    Power,
    /// The disk is full for a while.
    Full,
    /// A sync fails.
    Eio,
    /// The process stands still for a while.
    Stop,
    /// The kernel kills the process because it takes too much memory.
    Memory,
    /// `kill -9` of one of several hosts.
    HostKill,
    /// One of several hosts stands still until it is considered dead, and then goes on.
    HostStop,
    /// One of several hosts is stopped in order, and started again.
    HostRestart,
    /// One of several hosts is started again with a clock that is an hour ahead or behind.
    HostClock,
    /// The connections between a host and the store are reset, and new ones refused for a while.
    Cut,
    /// Nothing passes between a host and the store for a while.
    Stall,
    /// `kill -9` of the whole store, which is then started again.
    StoreKill,
    /// The store ends connections over which hosts commit.
    Terminate,
    /// The store ends the connection by which it knows that a host lives.
    Evict,
    /// The store is lost, and another one that has everything takes its place.
    Promote,
    /// The disk of the store is full for a while.
    StoreFull,
    /// `kill -9` of one of the store's servers, which is then started again.
    ServerKill,
    /// `kill -9` of the server that decides, which is started again when the hosts have gone on with the others.
    LeaderKill,
    /// One of the store's servers stands still for a while.
    ServerStop,
    /// The server that decides is told to leave that to another one.
    StepDown,
}

/// A step of the host's work at which a fault may be aimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A commit of the counting processor is in the journal's file, and the sync that makes it
    /// durable has not returned; or the loss of power has removed the commit.
    BeforeCommit,
    /// Such a commit is durable, possibly shown to a reader, and the processor's next one has not
    /// been written.
    AfterCommit,
    /// A new revision is being deployed.
    Swap,
    /// Dead letters are being redriven.
    Redrive,
    /// A checkpoint is being saved.
    Checkpoint,
}

impl Step {
    /// All steps.
    pub const ALL: [Self; 5] = [
        Self::BeforeCommit,
        Self::AfterCommit,
        Self::Swap,
        Self::Redrive,
        Self::Checkpoint,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::BeforeCommit => "before commit",
            Self::AfterCommit => "after commit",
            Self::Swap => "mid-swap",
            Self::Redrive => "mid-redrive",
            Self::Checkpoint => "mid-checkpoint",
        }
    }
}

impl Fault {
    /// All faults of several hosts on one store.
    pub const OF_SEVERAL: [Self; 15] = [
        Self::HostKill,
        Self::HostStop,
        Self::HostRestart,
        Self::HostClock,
        Self::Cut,
        Self::Stall,
        Self::StoreKill,
        Self::Terminate,
        Self::Evict,
        Self::Promote,
        Self::StoreFull,
        Self::ServerKill,
        Self::LeaderKill,
        Self::ServerStop,
        Self::StepDown,
    ];

    /// Those of them that do not hit the store.
    pub const OF_A_HOST: [Self; 6] = [
        Self::HostKill,
        Self::HostStop,
        Self::HostRestart,
        Self::HostClock,
        Self::Cut,
        Self::Stall,
    ];

    /// All faults of a single host.
    pub const ALL: [Self; 6] = [
        Self::Kill,
        Self::Power,
        Self::Full,
        Self::Eio,
        Self::Stop,
        Self::Memory,
    ];

    /// The fault's word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Power => "power",
            Self::Full => "full",
            Self::Eio => "eio",
            Self::Stop => "stop",
            Self::Memory => "memory",
            Self::HostKill => "host-kill",
            Self::HostStop => "host-stop",
            Self::HostRestart => "host-restart",
            Self::HostClock => "host-clock",
            Self::Cut => "cut",
            Self::Stall => "stall",
            Self::StoreKill => "store-kill",
            Self::Terminate => "terminate",
            Self::Evict => "evict",
            Self::Promote => "promote",
            Self::StoreFull => "store-full",
            Self::ServerKill => "server-kill",
            Self::LeaderKill => "leader-kill",
            Self::ServerStop => "server-stop",
            Self::StepDown => "step-down",
        }
    }
}

/// One line of a history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since the history began.
    pub at_ms: u64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// Writes a history to a file, shared by all clients.
pub struct History {
    began: Instant,
    /// The file, and how many lines are in it.
    file: Mutex<(BufWriter<File>, u64)>,
}

impl History {
    /// Starts a history in a new file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path);
        let file = file.with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self {
            began: Instant::now(),
            file: Mutex::new((BufWriter::new(file), 0)),
        })
    }

    /// Appends a line.
    ///
    /// # Panics
    /// If the disk of the history fails: without a history nothing can be checked.
    pub fn write(&self, event: Event) {
        let (file, lines) = &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // The time is taken under the lock, so that lines stand in order of time.
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let line = serde_json::to_string(&Entry { at_ms, event });
        let line = line.expect("an event is JSON");
        writeln!(file, "{line}").expect("the history is written");
        *lines += 1;
    }

    /// The number of lines written so far.
    pub fn lines(&self) -> u64 {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Passes everything written so far to the system.
    pub fn flush(&self) -> Result<()> {
        let (file, _) = &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.flush().context("the history is written")
    }
}

/// The entries of a history file.
pub fn read(path: &Path) -> Result<impl Iterator<Item = Result<Entry>>> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let lines = BufReader::new(file).lines();
    Ok(lines.map(|line| Ok(serde_json::from_str(&line?)?)))
}
