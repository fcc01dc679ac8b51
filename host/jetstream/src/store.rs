//! What all parts of the engine share, and how one step is written: published, answered, and heard of in the stream.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use millrace_engine::{CommitError, HostId};
use millrace_model::{Clock, Durability, RecordBatch};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::acknowledged::{self, Acknowledged};
use crate::atomic::{self, Answer, BUSY_INTERVAL, BUSY_TRIES_MAX, HEADER_BYTES_MAX, Put};
use crate::cells::Cells;
use crate::chains::Holds;
use crate::heard::Passed;
use crate::mirror::Mirror;
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
    /// The seat that this host says it has.
    pub(crate) seat: Mutex<Option<u32>>,
    pub(crate) mirror: Mirror,
    pub(crate) cells: Cells,
    pub(crate) tables: Tables,
    pub(crate) holds: Holds,
    pub(crate) is_closed: AtomicBool,
    /// Whether what this host counts can be relied on.
    pub(crate) counting: Counting,
    /// Commits for the feed.
    pub(crate) acknowledged: mpsc::Sender<Acknowledged>,
    /// Tests let a host stand still.
    pub(crate) is_stalled: AtomicBool,
}

/// Whether what a host counts can be relied on.
#[derive(Default)]
pub(crate) struct Counting {
    state: AtomicU8,
    /// Wakes the feed, which then counts anew.
    anew: Notify,
}

const RIGHT: u8 = 0;
const WRONG: u8 = 1;
const ANEW: u8 = 2;

impl Counting {
    pub(crate) fn is_right(&self) -> bool {
        self.state.load(Ordering::Acquire) == RIGHT
    }

    /// It is wrong. Returns whether this is news.
    pub(crate) fn is_wrong(&self) -> bool {
        self.state.swap(WRONG, Ordering::AcqRel) != WRONG
    }

    pub(crate) fn begin_anew(&self) {
        self.anew.notify_one();
    }

    /// Somebody has asked to begin anew.
    pub(crate) async fn asked_anew(&self) {
        self.anew.notified().await;
    }

    /// What was wrong is dropped, and counted anew.
    pub(crate) fn begun_anew(&self) {
        let (from, to) = (WRONG, ANEW);
        let _ = self
            .state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
    }

    /// It has counted everything anew. Returns whether it was wrong before, and is right now.
    pub(crate) fn is_done_anew(&self) -> bool {
        let (from, to) = (ANEW, RIGHT);
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
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
        match self.counting.is_right() {
            false => Err(Trouble::unavailable(
                "this host found that it had counted the messages of the stream wrongly, and counts them anew: try again. If it stays so, look for damage with `nats stream info`",
            )),
            true => Ok(()),
        }
    }

    /// What this host knows of offsets is wrong: it stops serving, and counts anew.
    pub(crate) fn stop_serving(&self, what: &str) {
        if self.counting.is_wrong() {
            tracing::error!(
                "{what}: this host counts the messages of the stream otherwise than they are. It stops serving until it has counted anew"
            );
            // Progress that was made with other offsets must not be written.
            self.holds.lose();
            self.counting.begin_anew();
        }
    }

    /// Whether this host may write what others build on: its counts are right as far as anybody knows, and it has come to the newest that
    /// somebody has written.
    pub(crate) fn check_agreement(&self) -> Result<(), Trouble> {
        self.check_counts()?;
        match self.mirror.agrees() {
            true => Ok(()),
            false => Err(Trouble::unavailable(
                "this host has yet to compare its counts with the newest in the stream",
            )),
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
        let mut tries = 0;
        let first_seq = loop {
            tries += 1;
            let connection = self.connection();
            let commit = ticket.next();
            let refused = match atomic::publish_once(&self.client, puts, commit).await {
                Answer::Done(first) => {
                    acknowledged::tell(&self.acknowledged, self, puts, (commit, first));
                    break first;
                }
                // Only the answer was lost.
                Answer::Failed(Trouble::InDoubt(why)) => {
                    return ticket.passed().ok_or(Trouble::InDoubt(why));
                }
                Answer::Failed(trouble) => return Err(trouble),
                Answer::Refused(trouble) => Some(trouble),
                Answer::Again => None,
            };
            self.pass_by(connection).await?;
            if let Some(passed) = ticket.passed() {
                tracing::debug!("a server refused what the next leader has written");
                return Ok(passed);
            }
            match refused {
                Some(trouble) => return Err(trouble),
                None if tries < BUSY_TRIES_MAX => tokio::time::sleep(BUSY_INTERVAL).await,
                None => return Err(atomic::busy()),
            }
        };
        let last = first_seq + puts.len() as u64 - 1;
        self.hear(last).await.map_err(|_| {
            let why = "it was written, but the stream cannot be followed";
            Trouble::InDoubt(why.into())
        })?;
        // The offsets are not those that it was given.
        self.check_counts().map_err(|_| {
            let why = "it was written while this host counted wrongly";
            Trouble::InDoubt(why.into())
        })?;
        let unseen = || Passed {
            first_seq,
            offsets: Default::default(),
        };
        Ok(ticket.passed().unwrap_or_else(unseen))
    }

    /// Whoever answers is told apart from whoever answered before a connection was lost.
    fn connection(&self) -> (String, u64, u64) {
        let info = self.client.server_info();
        let beginnings = self.mirror.heard.read().beginnings;
        (info.server_id, info.client_id, beginnings)
    }

    /// Waits until it is heard of everything that was sent before on this connection, as far as it was written. A server that was stopped
    /// as the stream's leader, and goes on when another one leads, gets what is sent to the stream as well as that one, and refuses it by
    /// what it knew. So a refusal says nothing until something that was sent later has come back: the new leader takes both in their order.
    async fn pass_by(&self, connection: (String, u64, u64)) -> Result<(), Trouble> {
        let in_doubt = |why: &dyn std::fmt::Display| {
            let why = format!("it was refused, and it is not known by which leader: {why}");
            Trouble::InDoubt(why.into())
        };
        let said = self.say_word().await.map_err(|error| in_doubt(&error))?;
        self.hear(said).await.map_err(|error| in_doubt(&error))?;
        match self.connection() == connection {
            true => Ok(()),
            false => Err(in_doubt(&"the connection was lost meanwhile")),
        }
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
