//! Delivers due messages: one transaction appends them to the partition and removes them from the delayed ones, so each is in exactly
//! one of the two places, whatever happens in between.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use millrace_engine::state::{StateEntry, StateQuery, StateTable, Turn};
use millrace_engine::{Append, CommitError, ReadError, Transaction};
use millrace_model::{
    BatchBuilder, Compression, RecordBatch, Timestamp, TopicName, TopicPartition,
};
use tokio::sync::watch;

use crate::ground::backoff::Backoff;
use crate::ground::{packing, tasks};
use crate::hosts::holding::Share;
use crate::messages::delays::delayed::Delays;
use crate::messages::delays::stored;
use crate::messages::delays::stored::{DelayedId, GROUP, read, removal};

/// Delayed messages delivered per transaction.
const DELIVERED_AT_ONCE_MAX: usize = 1_000;
/// Bytes of delayed messages delivered per transaction, except for one larger message.
const DELIVERED_BYTES_AT_ONCE_MAX: usize = 4 << 20;
/// Partitions to which delayed messages are delivered concurrently.
const PARTITIONS_AT_ONCE_MAX: usize = 16;
/// The longest sleep, because the wall clock may be set; all partitions are checked at this interval, whatever was noted.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Time until all partitions are checked again if one could not be read.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Time after which due messages are looked for again once other hosts have delayed some.
const OTHERS_LOOK_AFTER: Duration = Duration::from_millis(20);

/// Why a partition was skipped.
enum Left {
    /// It was deleted with its delayed messages.
    Gone,
    /// It may work later.
    Wait(String),
    /// The engine accepts nothing more.
    End,
}

impl From<CommitError> for Left {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::UnknownPartition(_) => Self::Gone,
            CommitError::Poisoned(_) | CommitError::Closed => Self::End,
            _ => Self::Wait(error.to_string()),
        }
    }
}

impl From<ReadError> for Left {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::UnknownPartition(_) => Self::Gone,
            _ => Self::Wait(error.to_string()),
        }
    }
}

/// The due messages of one partition.
struct Due {
    entries: Vec<StateEntry>,
    ids: Vec<DelayedId>,
    batch: Option<RecordBatch>,
}

/// Delivers until told to stop, or until the engine stops.
pub(crate) async fn run(delays: Arc<Delays>, mut stop: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    let (mut look_at, mut moves_at) = (Duration::ZERO, Duration::MAX);
    let mut has_grown = false;
    let mut hosts = delays.holdings.changes();
    let mut others = delays.engine.watch_state(&GROUP);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = delays.follow_steps() => {}
        }
        let monotonic = delays.clock.monotonic();
        if std::mem::take(&mut has_grown) {
            // The time at which all moves stays as it is.
            delays.give_back().await;
        }
        if moves_at <= monotonic {
            delays.give_back().await;
            moves_at = Duration::MAX;
        }
        if look_at <= monotonic {
            let has_seen_all = delays.look().await;
            look_at = monotonic
                + if has_seen_all {
                    LOOK_EVERY
                } else {
                    LOOK_AGAIN_AFTER
                };
        }
        let Some(wait) = delays.round(&mut backoff).await else {
            break;
        };
        let rest = look_at.min(moves_at);
        let rest = rest.saturating_sub(delays.clock.monotonic());
        tokio::select! {
            // The sender of the stop may be gone as well.
            _ = stop.wait_for(|stop| *stop) => break,
            () = delays.earlier.notified() => {}
            () = delays.moved.notified() => {
                has_grown = true;
                look_at = Duration::ZERO;
            }
            () = tokio::time::sleep(wait.min(rest)) => {}
            // Partitions without a holder are taken over at once; this host's own move when it is time.
            Ok(()) = hosts.changed() => {
                delays.holdings.notice();
                moves_at = delays.clock.monotonic() + delays.holdings.moved_after();
                look_at = Duration::ZERO;
            }
            // Something may be due earlier than known here.
            Ok(()) = others.changed() => {
                look_at = look_at.min(delays.clock.monotonic() + OTHERS_LOOK_AFTER);
            }
        }
    }
    delays.give_back_all().await;
}

impl Delays {
    /// One transaction for each of some due partitions; returns how long there is nothing to do. `None` is the end.
    async fn round(&self, backoff: &mut Backoff) -> Option<Duration> {
        let now = self.clock.wall();
        let due = self.agenda.lock().take_due(now, PARTITIONS_AT_ONCE_MAX);
        let delivered = stream::iter(due).map(|(partition, topic)| async move {
            // A bug that affects one partition must not stop the others.
            let delivered = tasks::caught("delays", self.deliver_from(partition, &topic, now));
            let left = match delivered.await {
                Ok(delivered) => delivered.err(),
                Err(panicked) => Some(Left::Wait(panicked.to_owned())),
            };
            (partition, topic, left)
        });
        let delivered = delivered.buffer_unordered(PARTITIONS_AT_ONCE_MAX);
        let delivered: Vec<_> = delivered.collect().await;
        let mut left_for = None;
        for (partition, topic, left) in delivered {
            match left {
                None => {}
                Some(Left::Gone) => self.forget(partition),
                Some(Left::End) => return None,
                Some(Left::Wait(reason)) => {
                    let wait =
                        *left_for.get_or_insert_with(|| backoff.next(&mut fastrand::Rng::new()));
                    tracing::warn!(%topic, partition = %partition.partition, reason, "delayed messages wait; trying again");
                    self.agenda.lock().note(partition, &topic, now.after(wait));
                }
            }
        }
        if left_for.is_none() {
            backoff.reset();
        }
        let next = self.agenda.lock().next();
        let now = self.clock.wall();
        Some(next.map_or(LOOK_EVERY, |next| now.until(next).min(LOOK_EVERY)))
    }

    async fn deliver_from(
        &self,
        partition: TopicPartition,
        topic: &TopicName,
        now: Timestamp,
    ) -> Result<(), Left> {
        let is_elsewhere = self.holdings.elsewhere(partition).is_some();
        // This host delivers to the partitions it holds until it gives them up.
        if is_elsewhere && (self.kept(partition).is_none() || self.holdings.moves(partition)) {
            // Checked again when hosts join or leave.
            return Ok(());
        }
        let Some(share) = self.share_of(partition).await? else {
            let reason = "another host has not released them yet".to_owned();
            return Err(Left::Wait(reason));
        };
        let table = self.engine.state(&GROUP, partition).await?;
        // A cancellation waits for the turn, and finds the message gone.
        let turn = table.turn().await;
        let due = due(&table, partition, now);
        if !due.entries.is_empty() {
            self.deliver(partition, topic, due, &share, &turn).await?;
        }
        drop(turn);
        self.show(partition, topic, &table);
        if let Some(next) = first_due(&table) {
            self.agenda.lock().note(partition, topic, next);
        }
        Ok(())
    }

    /// The lease to deliver there, kept from then on; `None` while another host has it.
    pub(super) async fn share_of(
        &self,
        partition: TopicPartition,
    ) -> Result<Option<Arc<Share>>, CommitError> {
        if let Some(share) = self.kept(partition) {
            return Ok(Some(share));
        }
        let share = self.holdings.take(partition).await?;
        if self.holdings.moves(partition) {
            // Another host was waiting for it before this one got it; nobody would give it back later.
            if let Some(share) = share {
                share.leave().await;
            }
            return Ok(None);
        }
        if let Some(share) = &share {
            let mut held = self.held.lock();
            held.insert(partition, Arc::clone(share));
        }
        Ok(share)
    }

    fn kept(&self, partition: TopicPartition) -> Option<Arc<Share>> {
        let kept = self.held.lock().get(&partition).cloned();
        kept.filter(|share| !share.is_lost())
    }

    /// A lease to write there now: the delivery lease if this host has it, otherwise a claim.
    pub(super) async fn right_to(
        &self,
        partition: TopicPartition,
    ) -> Result<Arc<Share>, CommitError> {
        if self.holdings.elsewhere(partition).is_none()
            && let Some(share) = self.share_of(partition).await?
        {
            return Ok(share);
        }
        self.holdings.claim(partition).await
    }

    /// The partitions that should go to other hosts by now.
    async fn give_back(&self) {
        let moving: Vec<Arc<Share>> = {
            let mut held = self.held.lock();
            let moving = held.extract_if(|at, _| self.holdings.moves(*at));
            moving.map(|(_, share)| share).collect()
        };
        for share in moving {
            share.leave().await;
        }
    }

    async fn give_back_all(&self) {
        let held = std::mem::take(&mut *self.held.lock());
        for share in held.into_values() {
            share.leave().await;
        }
    }

    async fn deliver(
        &self,
        partition: TopicPartition,
        topic: &TopicName,
        due: Due,
        share: &Share,
        turn: &Turn,
    ) -> Result<(), Left> {
        let lost = due.entries.len() - due.ids.len();
        if lost > 0 {
            tracing::error!(%topic, partition = %partition.partition, lost, "delayed messages cannot be read and are given up");
        }
        let settings = self.engine.topic(topic).map(|topic| topic.spec.settings);
        let codec = settings.map_or(Compression::None, |settings| settings.compression);
        let packed = packing::packed(due.batch.into_iter().collect(), |_| codec).await;
        let append = |batch| Append { partition, batch };
        let transaction = Transaction {
            appends: packed.into_iter().map(append).collect(),
            state: vec![removal(
                partition,
                share,
                due.entries.iter().map(|e| &e.key),
            )],
            turns: turn.held().into_iter().collect(),
            ..Transaction::default()
        };
        share.commit(transaction).await?;
        self.delivered(topic, &due.ids);
        Ok(())
    }

    /// Notes every partition that has delayed messages; returns whether all could be read.
    pub(super) async fn look(&self) -> bool {
        let Ok(partitions) = self.engine.state_partitions(&GROUP).await else {
            return false;
        };
        self.forget_all_but(&partitions);
        // Includes topics that were deleted.
        self.held.lock().retain(|_, share| !share.is_lost());
        if partitions.is_empty() {
            return true;
        }
        let mut has_seen_all = true;
        let topics = self.engine.topics().into_iter();
        let names: std::collections::HashMap<_, _> = topics.map(|t| (t.id, t.spec.name)).collect();
        for partition in partitions {
            let Some(topic) = names.get(&partition.topic) else {
                continue;
            };
            match self.engine.state(&GROUP, partition).await {
                Ok(table) => {
                    self.show(partition, topic, &table);
                    if let Some(due) = first_due(&table) {
                        self.agenda.lock().note(partition, topic, due);
                    }
                }
                // Deleted with its topic.
                Err(ReadError::UnknownPartition(_)) => {}
                Err(_) => has_seen_all = false,
            }
        }
        has_seen_all
    }
}

/// The due messages as one batch.
fn due(table: &StateTable, partition: TopicPartition, now: Timestamp) -> Due {
    let query = StateQuery {
        entries_max: DELIVERED_AT_ONCE_MAX,
        bytes_max: DELIVERED_BYTES_AT_ONCE_MAX,
        ..StateQuery::default()
    };
    let page = stored::page(table, &query);
    let mut entries = page.entries;
    let is_due = |entry: &StateEntry| {
        let id = DelayedId::of_key(partition.partition, &entry.key);
        id.is_none_or(|id| id.due <= now)
    };
    entries.retain(is_due);
    let mut ids = Vec::with_capacity(entries.len());
    let mut builder = BatchBuilder::with_capacity(0);
    for entry in &entries {
        if let Some((id, message)) = read(entry, partition.partition) {
            builder.push(&message);
            ids.push(id);
        }
    }
    Due {
        entries,
        ids,
        batch: builder.finish(),
    }
}

/// When the first one is due.
fn first_due(table: &StateTable) -> Option<Timestamp> {
    let query = StateQuery {
        entries_max: 1,
        ..StateQuery::default()
    };
    let first = stored::page(table, &query);
    let key = &first.entries.first()?.key;
    // Unreadable entries are handled at once.
    Some(DelayedId::of_key(Default::default(), key).map_or_else(Timestamp::default, |id| id.due))
}
