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
    /// The rules by which what follows is judged.
    Rules(Rules),
    /// A producer sends messages `first..first + count`, in one request.
    Invoke {
        /// Who.
        producer: u32,
        /// Its first sequence.
        first: u64,
        /// How many.
        count: u32,
        /// Where to.
        topic: String,
        /// Whether the host was asked to take them once however often they are sent.
        once: bool,
    },
    /// When these messages are to be delivered, in milliseconds since the Unix epoch. Noted before
    /// they are sent.
    Due {
        /// Who.
        producer: u32,
        /// The first one's sequence.
        first: u64,
        /// When, one by one.
        due_ms: Vec<u64>,
    },
    /// The time of day. A client notes it between seeing something and noting what it saw: what
    /// follows was there by this time.
    Clock {
        /// Since the Unix epoch.
        now_ms: u64,
    },
    /// A schedule was made.
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
        /// What it made.
        ticks: Vec<Tick>,
        /// Whether this belongs to the last reading of everything.
        last: bool,
    },
    /// Something was done with a revision on trial.
    Trial {
        /// What.
        what: Trial,
    },
    /// A backup was taken while everything went on.
    Backup {
        /// How it ended.
        what: Copied,
        /// Why it is not whole, or not judged.
        #[serde(default)]
        why: String,
    },
    /// The request was acknowledged; partition and offset of each message ([`DELAYED`] for one that comes later).
    Ok {
        /// Who.
        producer: u32,
        /// Its first sequence.
        first: u64,
        /// Where they stand.
        placed: Vec<(u32, u64)>,
    },
    /// The request was refused: nothing of it was written.
    Fail {
        /// Who.
        producer: u32,
        /// Its first sequence.
        first: u64,
        /// What the host said.
        why: String,
    },
    /// The outcome of the request is unknown.
    Info {
        /// Who.
        producer: u32,
        /// Its first sequence.
        first: u64,
        /// What was seen instead of an answer.
        why: String,
    },
    /// Messages were read.
    Read {
        /// Where.
        topic: String,
        /// Where.
        partition: u32,
        /// What.
        messages: Vec<Seen>,
        /// Whether this belongs to the last reading of everything, from the start to the end.
        last: bool,
    },
    /// Where a partition begins and ends.
    Ends {
        /// Where.
        topic: String,
        /// Where.
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
        /// Where.
        topic: String,
        /// Where.
        partition: u32,
        /// The first offset that is to stay.
        before: u64,
    },
    /// The trim was done.
    Trimmed {
        /// Where.
        topic: String,
        /// Where.
        partition: u32,
        /// The first offset kept.
        start: u64,
    },
    /// How far a processor has come.
    Progress {
        /// Which.
        processor: String,
        /// Its input.
        topic: String,
        /// Its input.
        partition: u32,
        /// The next offset to read.
        next: u64,
    },
    /// The counts in a processor's state, by key (`producer/number`).
    State {
        /// Which.
        processor: String,
        /// Whose messages.
        partition: u32,
        /// The counts.
        counts: BTreeMap<String, i64>,
        /// Whether this belongs to the last reading of everything.
        last: bool,
    },
    /// All dead letters that had not been sent again at the end.
    Standing {
        /// Whose.
        processor: String,
        /// The letters.
        letters: Vec<Seen>,
    },
    /// A fault was injected.
    Fault {
        /// Which.
        kind: Fault,
        /// How, for people.
        how: String,
        /// Whether what was only in the page cache may be gone.
        forgets: bool,
    },
    /// The last fault was aimed at a step, and met it.
    Met {
        /// Which.
        kind: Fault,
        /// The step.
        step: Step,
    },
    /// The host serves again.
    Started {
        /// How long that took.
        after_ms: u64,
    },
    /// The host does not start.
    NotStarted {
        /// What it said.
        why: String,
    },
    /// The last fault is over and clients send nothing more: everything accepted must now get
    /// processed.
    Calm,
    /// Everything was processed.
    Drained {
        /// How long that took.
        after_ms: u64,
    },
    /// Not everything was processed in time.
    NotDrained {
        /// Where it stands.
        why: String,
    },
    /// A fault did not have the effect that it must have.
    Unexpected {
        /// What.
        what: String,
    },
}

/// The rules by which a history is judged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rules {
    /// The seed of all randomness.
    pub seed: u64,
    /// The topics.
    pub topics: Vec<TopicRule>,
    /// The processors.
    pub pipelines: Vec<Pipeline>,
}

/// Stands in place of an offset for a message that is accepted but not delivered yet.
pub const DELAYED: u64 = u64::MAX;

/// A message that a schedule made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// Where it stands.
    pub offset: u64,
    /// Its time.
    pub due_ms: u64,
    /// How many earlier times it stands for besides its own.
    pub missed: u64,
}

/// What happens to a revision on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trial {
    /// It gets a share of the keys.
    Begun,
    /// Its share is changed.
    Shared,
    /// It is current.
    Promoted,
    /// It is gone.
    Withdrawn,
}

/// How a backup ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copied {
    /// It is whole.
    Taken,
    /// The host was hit, or refused.
    BrokenOff,
    /// A host started on it, and what that host showed was judged.
    Judged,
    /// It could not be judged, for reasons outside the host.
    Unjudged,
}

/// What is promised of a topic.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TopicRule {
    /// Its name.
    pub name: String,
    /// Whether acknowledged messages survive a loss of power; otherwise they survive only the end
    /// of the process.
    pub durable: bool,
    /// Whether producers send here; otherwise a processor does.
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
    /// The oldest, by the topic's own settings.
    ByRetention,
    /// Those whose key has a later message, and eventually those that remove their key. A
    /// producer's messages of equal sequence modulo `keys` share a key.
    ByCompaction {
        /// Keys of one producer.
        keys: u64,
        /// One in this many messages of a key removes it; 0: none does.
        #[serde(default)]
        removes_every: u64,
    },
}

/// Whether a producer's message removes its key in a topic of [`Ages::ByCompaction`].
#[must_use]
pub fn removes_key(sequence: u64, keys: u64, removes_every: u64) -> bool {
    let number = (sequence / keys.max(1)).checked_rem(removes_every);
    number.is_some_and(|number| number + 1 == removes_every)
}

/// A processor: each input ends in exactly one of two places.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pipeline {
    /// Its name.
    pub processor: String,
    /// What it reads.
    pub input: String,
    /// Where its outputs go.
    pub output: String,
    /// Where what it cannot process goes.
    pub dead_letters: String,
    /// A producer's messages of equal sequence modulo this share a key, and keep their order.
    pub keys: u64,
    /// Whether its state counts the outputs of each key.
    #[serde(default)]
    pub counts: bool,
    /// Whether its dead letters are sent again.
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

    /// Who sent it.
    #[must_use]
    pub fn id(&self) -> Id {
        Id::new(self.1, self.2)
    }
}

/// What may be done to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// `kill -9`.
    Kill,
    /// The file system stops, and what it had not written is gone.
    Power,
    /// The disk is full for a while.
    Full,
    /// A sync fails.
    Eio,
    /// The process stands still for a while.
    Stop,
    /// The kernel kills the process because it takes too much memory.
    Memory,
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
    /// Dead letters are being sent again.
    Redrive,
    /// A checkpoint is being saved.
    Checkpoint,
}

impl Step {
    /// All of them.
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
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Kill,
        Self::Power,
        Self::Full,
        Self::Eio,
        Self::Stop,
        Self::Memory,
    ];

    /// Its word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Power => "power",
            Self::Full => "full",
            Self::Eio => "eio",
            Self::Stop => "stop",
            Self::Memory => "memory",
        }
    }
}

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since the history began.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// Writes a history to a file; shared by all clients.
pub struct History {
    began: Instant,
    /// The file, and how many lines are in it.
    file: Mutex<(BufWriter<File>, u64)>,
}

impl History {
    /// Begins a history in a new file.
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
    /// If the history's own disk fails: without it nothing can be judged.
    pub fn write(&self, event: Event) {
        let (file, lines) = &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // The time is taken under the lock, so that lines stand in order of time.
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let line = serde_json::to_string(&Entry { at_ms, event });
        let line = line.expect("an event is JSON");
        writeln!(file, "{line}").expect("the history is written");
        *lines += 1;
    }

    /// How many lines were written so far.
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
