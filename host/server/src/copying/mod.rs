//! Copies everything from one engine to another, for `millrace copy`: topics under their ids, messages at their offsets, and what depends on
//! both. Nothing is translated, so processors and consumers go on exactly where they were.
//!
//! A copy can be broken off at any point and begun again: messages go on where the target ends, everything else is written anew. Until it is
//! complete, no host starts on the target. The catalogue comes last, after everything else was compared.

mod catalogue;
mod comparing;
mod groups;
mod messages;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use millrace_engine::{
    AdoptError, CommitError, Engine, EntryKind, HostInfo, ReadError, TopicError, TrimError,
};
use millrace_model::{Digest, Timestamp, Topic, TopicPartition};
use sha2::{Digest as _, Sha256};

pub(crate) use self::comparing::{Compared, PartitionDigest};

/// Partitions that are copied or compared at the same time.
const PARTITIONS_AT_ONCE: usize = 4;
/// Bytes of messages that are read, and then written, at once. Each partition has so many in memory twice at most.
const READ_BYTES: usize = 4 << 20;
/// A host that was stopped may still be listed for as long.
const HOSTS_STOPPED_AFTER: Duration = Duration::from_secs(3);
/// One that was killed may be listed for longer.
const HOSTS_GONE_AFTER: Duration = Duration::from_secs(12);
/// How long it may take to find out whether it still runs.
const ANSWER_DURATION_MAX: Duration = Duration::from_secs(1);

/// Whether a store can be copied, which is known before a target is made: no host is on it, and every message is in a topic.
pub(crate) async fn check_source(source: &dyn Engine) -> Result<(), CopyError> {
    check_hosts(Side::Source, source).await?;
    let outbox = source.outbox(1).await.map_err(CopyError::Source)?;
    match outbox.is_empty() {
        true => Ok(()),
        false => Err(CopyError::Outbox),
    }
}

/// Whether other hosts are on a store. An engine for one host was opened, so no other is on it.
async fn check_hosts(side: Side, engine: &dyn Engine) -> Result<(), CopyError> {
    if is_alone(engine, HOSTS_STOPPED_AFTER).await {
        return Ok(());
    }
    let others = others(engine);
    let answering = futures_util::future::join_all(others.iter().map(answers)).await;
    if !answering.contains(&true) && is_alone(engine, HOSTS_GONE_AFTER).await {
        return Ok(());
    }
    let named = others.iter().find(|host| !host.address.is_empty());
    Err(CopyError::HostsRun {
        side,
        count: others.len(),
        such_as: named.map_or_else(String::new, |host| {
            format!(", such as the one at {}", host.address)
        }),
        has_begun: false,
    })
}

fn others(engine: &dyn Engine) -> Vec<HostInfo> {
    let (own, hosts) = (engine.host(), engine.hosts());
    let alive = hosts.borrow();
    let others = alive.iter().filter(|host| host.id != own);
    others.cloned().collect()
}

/// Whether there is no other host on it, now or within this time.
async fn is_alone(engine: &dyn Engine, within: Duration) -> bool {
    let (own, mut hosts) = (engine.host(), engine.hosts());
    let alone = hosts.wait_for(|alive| alive.iter().all(|host| host.id == own));
    matches!(tokio::time::timeout(within, alone).await, Ok(Ok(_)))
}

/// Whether somebody listens there: a host that was killed may be listed for a while, and need not be waited for.
async fn answers(host: &HostInfo) -> bool {
    let connecting = tokio::net::TcpStream::connect(&*host.address);
    let connected = tokio::time::timeout(ANSWER_DURATION_MAX, connecting).await;
    matches!(connected, Ok(Ok(_)))
}

/// The two stores of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// Why a copy ended before its end. What it has copied stays, and it can be begun again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("{count} hosts run on the {side}{such_as}")]
    HostsRun {
        side: Side,
        count: usize,
        such_as: String,
        /// Whether something was copied before.
        has_begun: bool,
    },
    #[error("the target is not empty: it has {what}, and no unfinished copy of this source")]
    NotEmpty { what: String },
    #[error("the target's {what} is not the source's")]
    Other { what: String },
    #[error("messages wait in the outbox of the source, which belong to no topic yet")]
    Outbox,
    #[error("topic {topic}: {error}")]
    Topic { topic: String, error: AdoptError },
    #[error("the source cannot be read: {0}")]
    Source(#[source] ReadError),
    #[error("the target cannot be read: {0}")]
    Target(#[source] ReadError),
    #[error("the target cannot be written to: {0}")]
    Write(#[from] CommitError),
    #[error("the target cannot be written to: {0}")]
    Adopt(#[from] AdoptError),
    #[error("the target cannot be written to: {0}")]
    Trim(#[from] TrimError),
}

impl CopyError {
    /// The same after everything was copied.
    fn at_the_end(mut self) -> Self {
        if let Self::HostsRun { has_begun, .. } = &mut self {
            *has_begun = true;
        }
        self
    }
}

/// Is told how far a copy is.
pub(crate) trait Watcher: Sync {
    /// What is done now, and how many steps it has.
    fn begins(&self, what: &str, steps: u64);
    /// So many steps were done.
    fn advances(&self, steps: u64);
}

/// What a copy did.
#[derive(Debug)]
pub(crate) struct Copied {
    /// What both sides have.
    pub(crate) compared: Compared,
    /// Messages and modules that the source itself cannot read.
    pub(crate) damaged: Vec<String>,
}

impl Copied {
    /// Whether the target has everything that the source has.
    pub(crate) fn is_whole(&self) -> bool {
        self.compared.differences.is_empty() && self.damaged.is_empty()
    }
}

/// A copy between two engines. No host runs on either; the engines clean nothing meanwhile.
pub(crate) struct Copy<'a> {
    pub(crate) source: &'a dyn Engine,
    pub(crate) target: &'a dyn Engine,
    /// Names the source: an unfinished copy is gone on with only if it is of the same one.
    pub(crate) name: String,
    pub(crate) watcher: &'a dyn Watcher,
    /// When it began: entries of state that have ended by then are not copied.
    pub(crate) began_at: Timestamp,
}

impl Copy<'_> {
    /// Copies everything that the target does not have, and compares.
    pub(crate) async fn run(&self) -> Result<Copied, CopyError> {
        check_source(self.source).await?;
        check_hosts(Side::Target, self.target).await?;
        self.begin().await?;
        let topics = self.copy_topics().await?;
        let mut damaged = self.copy_modules().await?;
        damaged.extend(self.copy_messages(&topics).await?);
        self.copy_groups(&topics).await?;
        let mut compared = self.compare(&topics).await?;
        if compared.differences.is_empty() {
            self.copy_entries().await?;
            self.compare_entries(&mut compared);
        }
        for (side, engine) in [(Side::Source, self.source), (Side::Target, self.target)] {
            let checked = check_hosts(side, engine).await;
            checked.map_err(|error| error.at_the_end())?;
        }
        let copied = Copied { compared, damaged };
        if copied.compared.differences.is_empty() {
            self.end().await?;
        }
        Ok(copied)
    }

    /// The mark of a copy of this source.
    fn mark(&self) -> (Digest, Bytes) {
        mark(format!("an unfinished copy of {}\n", self.name))
    }

    async fn has(&self, (digest, bytes): &(Digest, Bytes)) -> Result<bool, CopyError> {
        let found = self.target.module(*digest).await;
        Ok(found.map_err(CopyError::Target)?.as_ref() == Some(bytes))
    }

    /// The target is empty, or has an unfinished copy of this source.
    async fn begin(&self) -> Result<(), CopyError> {
        let (unfinished, of_this) = (unfinished(), self.mark());
        match (self.has(&unfinished).await?, self.has(&of_this).await?) {
            (true, true) => return Ok(()),
            // That one was completed, or nothing was copied yet: what there is decides.
            (false, true) => self.target.delete_module(of_this.0, Vec::new()).await?,
            (_, false) => {}
        }
        let topic = self.target.topics().into_iter().next();
        let topic = topic.map(|topic| format!("topic {}", topic.spec.name));
        let kinds = EntryKind::ALL.into_iter();
        let mut entries = kinds.filter_map(|kind| {
            let (key, _) = self.target.entries(kind).into_iter().next()?;
            Some(format!("{} {key}", kind.as_str()))
        });
        if let Some(what) = topic.or_else(|| entries.next()) {
            return Err(CopyError::NotEmpty { what });
        }
        let outbox = self.target.outbox(1).await.map_err(CopyError::Target)?;
        if !outbox.is_empty() {
            let what = "messages in its outbox".to_owned();
            return Err(CopyError::NotEmpty { what });
        }
        // From the first on, no host starts here.
        for (digest, bytes) in [unfinished, of_this] {
            self.target.put_module(digest, bytes).await?;
        }
        Ok(())
    }

    /// Without its marks, the target is a store like any other.
    async fn end(&self) -> Result<(), CopyError> {
        for (digest, _) in [unfinished(), self.mark()] {
            self.target.delete_module(digest, Vec::new()).await?;
        }
        Ok(())
    }

    /// Topics by id, so that each is higher than the one before.
    async fn copy_topics(&self) -> Result<Vec<Topic>, CopyError> {
        let mut topics = self.source.topics();
        topics.sort_by_key(|topic| topic.id);
        for known in self.target.topics() {
            let what = format!("topic {}", known.spec.name);
            let is_of_source = topics.contains(&known);
            is_of_source
                .then_some(())
                .ok_or(CopyError::Other { what })?;
        }
        for topic in &topics {
            if self.target.topic(&topic.spec.name).is_none() {
                let adopted = self
                    .target
                    .adopt(millrace_engine::Adoption::Topic(topic.clone()));
                adopted.await.map_err(|error| CopyError::Topic {
                    topic: topic.spec.name.to_string(),
                    error,
                })?;
            }
        }
        // The source gives it to nobody, and neither does the target.
        let next = self.source.init_producer(None).await?;
        let ids = millrace_engine::Adoption::ProducerIds { next: next.id };
        self.target.adopt(ids).await?;
        Ok(topics)
    }

    /// Does something in all partitions, in some at the same time; the results are in order.
    async fn in_partitions<T, F>(
        &self,
        topics: &[Topic],
        mut work: impl FnMut(TopicPartition) -> F,
    ) -> Result<Vec<T>, CopyError>
    where
        F: Future<Output = Result<T, CopyError>>,
    {
        let all = topics.iter().flat_map(Topic::partitions);
        let all: Vec<TopicPartition> = all.collect();
        let work = stream::iter(all.into_iter().map(&mut work));
        work.buffered(PARTITIONS_AT_ONCE).try_collect().await
    }

    /// Offsets in all partitions of the source.
    fn offsets(&self, topics: &[Topic]) -> u64 {
        let partitions = topics.iter().flat_map(Topic::partitions);
        let ends = partitions.filter_map(|partition| self.source.ends(partition).ok());
        ends.map(|ends| ends.end.0 - ends.start.0).sum()
    }
}

impl From<TopicError> for CopyError {
    fn from(error: TopicError) -> Self {
        Self::Adopt(error.into())
    }
}

/// A mark of a copy: bytes among the modules that are no module.
fn mark(text: impl Into<Bytes>) -> (Digest, Bytes) {
    let bytes = text.into();
    (Digest(Sha256::digest(&bytes).into()), bytes)
}

/// The mark of every copy that is not complete.
fn unfinished() -> (Digest, Bytes) {
    mark("an unfinished copy\n")
}

/// Whether the store is the target of a copy that is not complete. A host on it would work with a part, and the copy would not go on.
pub(crate) async fn is_unfinished(engine: &dyn Engine) -> bool {
    let (digest, bytes) = unfinished();
    let found = engine.module(digest).await;
    matches!(found, Ok(Some(found)) if found == bytes)
}

/// The names of a topic's partitions for people.
fn shown(topics: &[Topic], partition: TopicPartition) -> String {
    let name = topics.iter().find(|topic| topic.id == partition.topic);
    let name = name.map_or_else(String::new, |topic| topic.spec.name.to_string());
    format!("topic {name}, partition {}", partition.partition)
}

/// All keys of one kind of entry on both sides.
fn keys(sides: [&dyn Engine; 2], kind: EntryKind) -> BTreeSet<String> {
    let entries = sides.into_iter().flat_map(|engine| engine.entries(kind));
    entries.map(|(key, _)| key).collect()
}
