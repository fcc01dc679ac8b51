//! What all parts of the engine share, and how one step is written: published, answered, and heard of in the stream.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use millrace_engine::{CommitError, HostId};
use millrace_model::{Clock, Durability, RecordBatch};

use crate::atomic::{self, HEADER_BYTES_MAX, Put};
use crate::cells::Cells;
use crate::chains::Holds;
use crate::mirror::{Mirror, Passed};
use crate::options::JetstreamOptions;
use crate::subjects::Subjects;
use crate::tables::Tables;
use crate::trouble::Trouble;

/// How long something that is in the stream may take until this host hears of it: longer than it takes to follow another server.
const HEARD_DURATION_MAX: Duration = Duration::from_secs(30);
/// The maximum that a host sends in one message, although the servers take more: they keep it in memory.
const PART_BYTES_MAX: usize = 1 << 20;

pub(crate) struct Store {
    pub(crate) options: JetstreamOptions,
    pub(crate) client: Client,
    pub(crate) stream: Stream<()>,
    pub(crate) subjects: Subjects,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) me: HostId,
    pub(crate) mirror: Mirror,
    pub(crate) cells: Cells,
    pub(crate) tables: Tables,
    pub(crate) holds: Holds,
    pub(crate) is_closed: AtomicBool,
    /// Whether this host counts otherwise than others.
    pub(crate) is_wrong: AtomicBool,
    /// Tests let a host stand still.
    pub(crate) is_stalled: AtomicBool,
}

/// The number of a commit of this host, known to the feed while this exists.
struct Ticket<'a> {
    mirror: &'a Mirror,
    batches: Arc<HashMap<usize, RecordBatch>>,
    commit: AtomicU64,
}

impl<'a> Ticket<'a> {
    fn new(mirror: &'a Mirror, batches: HashMap<usize, RecordBatch>) -> Self {
        Self {
            mirror,
            batches: Arc::new(batches),
            commit: AtomicU64::new(0),
        }
    }

    /// A new number, for another try.
    fn next(&self) -> u64 {
        let commit = random();
        self.mirror
            .forget(self.commit.swap(commit, Ordering::Relaxed));
        self.mirror.expect(commit, Arc::clone(&self.batches));
        commit
    }

    fn passed(&self) -> Option<Passed> {
        self.mirror.passed(self.commit.load(Ordering::Relaxed))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.mirror.forget(self.commit.load(Ordering::Relaxed));
    }
}

/// A number that no other host has chosen.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

impl Store {
    pub(crate) fn check_open(&self) -> Result<(), CommitError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(CommitError::Closed);
        }
        Ok(self.check_counts()?)
    }

    /// Whether the offsets that this host knows are those that the others know.
    pub(crate) fn check_counts(&self) -> Result<(), Trouble> {
        match self.is_wrong.load(Ordering::Acquire) {
            true => Err(Trouble::unavailable(
                "this host counts the messages of the stream otherwise than another host: restart it, and look for damage with `nats stream info`",
            )),
            false => Ok(()),
        }
    }

    /// What this host knows of offsets is wrong: it stops serving.
    pub(crate) fn stop_serving(&self, what: &str) {
        if !self.is_wrong.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "{what}: this host counts the messages of the stream otherwise than they are, and stops serving"
            );
        }
    }

    /// Whether what is asked can be promised.
    pub(crate) fn check_durable(&self, asked: Option<Durability>) -> Result<(), CommitError> {
        match asked {
            Some(Durability::Durable) if !self.options.synced => Err(CommitError::NotDurable),
            _ => Ok(()),
        }
    }

    /// Writes all of them in one step, and waits until this host has heard of it.
    pub(crate) async fn write(&self, puts: &[Put]) -> Result<Passed, Trouble> {
        self.write_batches(puts, HashMap::new()).await
    }

    /// Writes them, with the batches that are at these places.
    pub(crate) async fn write_batches(
        &self,
        puts: &[Put],
        batches: HashMap<usize, RecordBatch>,
    ) -> Result<Passed, Trouble> {
        let ticket = Ticket::new(&self.mirror, batches);
        let answered = atomic::publish(&self.client, puts, || ticket.next()).await;
        let first_seq = match answered {
            Ok(first) => first,
            // Only the answer was lost.
            Err(Trouble::InDoubt(why)) => return ticket.passed().ok_or(Trouble::InDoubt(why)),
            Err(trouble) => return Err(trouble),
        };
        let last = first_seq + puts.len() as u64 - 1;
        self.hear(last).await.map_err(|_| {
            let why = "it was written, but the stream cannot be followed";
            Trouble::InDoubt(why.into())
        })?;
        let unseen = || Passed {
            first_seq,
            offsets: Default::default(),
        };
        Ok(ticket.passed().unwrap_or_else(unseen))
    }

    /// Waits until everything up to the sequence is heard.
    pub(crate) async fn hear(&self, seq: u64) -> Result<(), Trouble> {
        let mut position = self.mirror.position();
        let heard = position.wait_for(|position| *position >= seq);
        match tokio::time::timeout(HEARD_DURATION_MAX, heard).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Trouble::unavailable("the stream cannot be followed")),
        }
    }

    /// Waits until everything is heard that is in the stream now.
    pub(crate) async fn sync(&self) -> Result<(), Trouble> {
        let info = self.stream.get_info().await.map_err(Trouble::unavailable)?;
        self.hear(info.state.last_sequence).await
    }

    /// Messages for something that may be larger than one message. `note` is given the part and the number of parts.
    pub(crate) fn in_parts(
        &self,
        subject: &str,
        body: &Bytes,
        note: impl Fn(usize, usize) -> String,
    ) -> Vec<Put> {
        let size = self.part_bytes();
        let count = body.len().div_ceil(size).max(1);
        let part = |part: usize| Put {
            subject: subject.to_owned(),
            note: note(part, count),
            body: body.slice(part * size..body.len().min((part + 1) * size)),
            ..Put::default()
        };
        (0..count).map(part).collect()
    }

    /// The most that the servers take in one message.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.client.max_payload().saturating_sub(HEADER_BYTES_MAX)
    }

    /// Bytes of one part of something.
    pub(crate) fn part_bytes(&self) -> usize {
        self.message_bytes_max()
            .clamp(HEADER_BYTES_MAX, PART_BYTES_MAX)
    }
}
