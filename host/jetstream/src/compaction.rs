//! Compacts partitions: of all messages with one key, only the latest is kept, by the rule of [`millrace_engine::compaction`].
//!
//! Nothing in a stream can be replaced where it is. So a pass writes what is left of a partition, with the offsets that it has, under a
//! subject of its own, and then moves the partition's beginning behind it, in one step that expects nobody else to have moved it. The
//! messages before that are removed as trimmed ones are, once everybody has counted them; what an earlier pass has left goes at once.
//!
//! One of the hosts does it for all. If two believe to be the one, the step of the later one is refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use millrace_engine::compaction::{DIRTY_PERCENT_MIN, Latest, Left, Run, Thinning};
use millrace_engine::{DamageKind, ReadError};
use millrace_model::bounds::{PRODUCER_IDLE_MS, REQUEST_AGE_MS_MAX};
use millrace_model::{Offset, RecordBatch, Stamp, Timestamp, Topic, TopicPartition};
use tokio::sync::watch;

use crate::atomic::Put;
use crate::compacted::{Compacted, Referred, encode_referred};
use crate::heard::Beginning;
use crate::index::Anchor;
use crate::reading::Found;
use crate::store::{Store, random};
use crate::trouble::Trouble;

/// Bytes that are read, and then written, in one step, unless a single batch is larger.
const PIECE_BYTES_MAX: usize = 4 << 20;
/// Messages that are written in one step.
const PIECE_PUTS_MAX: usize = 500;
/// Batches of a partition whose offsets are still known by their sequences after a pass, for requests that are repeated. Of more, the newest.
const REFERRED_MAX: usize = 1 << 20;
/// Those in one message, at most 30 bytes each.
const REFERRED_TOGETHER: usize = 16 << 10;
/// Bytes a second that a pass reads, so that the servers stay available to other work.
const BYTES_PER_SECOND_MAX: u64 = 64 << 20;

/// A pass over a partition.
struct Pass<'a> {
    store: &'a Store,
    at: TopicPartition,
    before: Beginning,
    end: Offset,
    /// Tombstones that were committed before this time are old.
    old_before: Timestamp,
    /// Random, and part of the subject of what is left.
    pass: u64,
}

/// A batch in the stream, and the sequence of its last part.
struct Piece {
    run: Run,
    last_seq: u64,
    /// If somebody may ask for it by its sequence.
    referred: Option<Referred>,
}

pub(crate) async fn run(store: Arc<Store>, mut stop: watch::Receiver<bool>) {
    let mut looked_at = HashMap::new();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(store.options.cleaning_interval) => {}
        }
        if !store.is_wanted() || store.check_agreement().is_err() {
            continue;
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = store.compact(&mut looked_at) => {}
        }
    }
}

/// Where each partition's own messages begin, and when the first of them was committed, so that it is asked once.
type LookedAt = HashMap<TopicPartition, (Offset, Option<Timestamp>)>;

impl Store {
    /// Makes a pass over each partition that is due.
    pub(crate) async fn compact(&self, looked_at: &mut LookedAt) {
        looked_at.retain(|at, _| self.mirror.exists(*at));
        for topic in self.mirror.topics() {
            if !topic.spec.settings.compact {
                continue;
            }
            for at in topic.partitions() {
                match self.compact_partition(&topic, at, looked_at).await {
                    Ok(()) => {}
                    // Somebody has moved its beginning; the next pass begins there.
                    Err(Trouble::Moved) => {
                        tracing::debug!(partition = %at, "compaction was overtaken");
                    }
                    Err(error) => {
                        let topic = &topic.spec.name;
                        tracing::warn!(%error, %topic, partition = %at.partition, "a partition cannot be compacted now; it is tried again");
                    }
                }
            }
        }
    }

    async fn compact_partition(
        &self,
        topic: &Topic,
        at: TopicPartition,
        looked_at: &mut LookedAt,
    ) -> Result<(), Trouble> {
        let read = |error: ReadError| Trouble::unavailable(error);
        let now = self.clock.wall();
        let old_before = Timestamp(now.0.saturating_sub(topic.spec.settings.tombstone_ms));
        let blocks = self.blocks(at).await.map_err(read)?;
        let (before, end) = {
            let heard = self.mirror.heard.read();
            let known = heard.partition(at).map_err(read)?;
            (known.beginning(), known.ends().end)
        };
        let clean = before.anchor.offset;
        let all: u64 = blocks.iter().map(|(block, _)| block.bytes).sum();
        let new = blocks.iter().filter(|(block, _)| block.base >= clean);
        let new: u64 = new.map(|(block, _)| block.bytes).sum();
        let is_old = |at: Option<Timestamp>| at.is_some_and(|at| at <= old_before);
        let left_at = before.compacted.as_ref().and_then(|c| c.tombstones_at);
        let enough_came = new > 0 && new >= all / 100 * DIRTY_PERCENT_MIN;
        let is_due = enough_came || is_old(left_at) || {
            let (of, first_at) = looked_at.entry(at).or_insert((clean, None));
            if *of != clean {
                (*of, *first_at) = (clean, None);
            }
            if new > 0 && first_at.is_none() {
                let pieces = self.subjects.piece(at);
                let first = self.next(&pieces, before.anchor.seq + 1).await?;
                *first_at = first.map(|first| first.at);
            }
            new > 0 && is_old(*first_at)
        };
        if !is_due {
            return Ok(());
        }
        looked_at.remove(&at);
        let before = self.remove_leftovers(at, before).await?;
        let pass = Pass {
            store: self,
            at,
            before,
            end,
            old_before,
            pass: random() >> 1,
        };
        pass.run(now).await
    }

    /// Removes what passes have left that did not come to their end. Before that, it moves the cell of the beginning, so that one that is
    /// still under way somewhere will be refused.
    async fn remove_leftovers(
        &self,
        at: TopicPartition,
        before: Beginning,
    ) -> Result<Beginning, Trouble> {
        let listed = self.subjects.all_compacted(at);
        let listed = self.stream.info_with_subjects(listed).await;
        let mut listed = listed.map_err(Trouble::unavailable)?;
        let own = before.compacted.as_ref();
        let own = own.map(|own| self.subjects.compacted(at, own.pass));
        let mut leftovers = Vec::new();
        while let Some((subject, _)) = listed.try_next().await.map_err(Trouble::unavailable)? {
            if Some(&subject) != own.as_ref() {
                leftovers.push(subject);
            }
        }
        if leftovers.is_empty() {
            return Ok(before);
        }
        let moved = self.write(&[self.start_put(at, before.clone())]).await?;
        for subject in leftovers {
            let purge = self.stream.purge().filter(subject).await;
            purge.map_err(Trouble::unavailable)?;
        }
        Ok(Beginning {
            seq: moved.first_seq,
            ..before
        })
    }

    /// Batches from an offset on that begin before another, as many as fit into one step; none if there are no more.
    async fn pieces(
        &self,
        at: TopicPartition,
        from: Offset,
        until: Offset,
    ) -> Result<Vec<Piece>, Trouble> {
        let mut pieces = Vec::new();
        let mut bytes = 0;
        if from >= until {
            return Ok(pieces);
        }
        let see = &mut |found: Found| {
            if found.end <= from {
                return true;
            }
            if found.base >= until {
                return false;
            }
            bytes += found.batch.as_ref().map_or(0, RecordBatch::byte_count);
            pieces.push(piece(at, found));
            bytes < PIECE_BYTES_MAX && pieces.len() < PIECE_PUTS_MAX
        };
        let read = |error: ReadError| Trouble::unavailable(error);
        let is_certain = match self.compacted_at(at, from).map_err(read)? {
            Some(compacted) => {
                self.walk_compacted(at, &compacted, from, PIECE_BYTES_MAX, see)
                    .await
            }
            None => {
                let place = self.place_of(at, from).await.map_err(read)?;
                self.walk(at, place, PIECE_BYTES_MAX, see).await
            }
        };
        if !is_certain.map_err(read)? {
            return Err(Trouble::Moved);
        }
        let rest = bytes as u64 * 1_000_000 / BYTES_PER_SECOND_MAX;
        tokio::time::sleep(Duration::from_micros(rest)).await;
        Ok(pieces)
    }
}

fn piece(at: TopicPartition, found: Found) -> Piece {
    let (from, to) = (found.base, found.end);
    let damaged = |kind: DamageKind| ReadError::Damaged {
        partition: at,
        from,
        to,
        kind,
    };
    Piece {
        run: Run {
            base: found.base,
            next: found.end,
            at: found.at,
            batches: found.batch.map(|batch| vec![batch]).map_err(damaged),
        },
        last_seq: found.last_seq,
        referred: found.is_referred.then_some(Referred {
            seq: found.seq,
            base: found.base,
            at: found.at,
        }),
    }
}

impl Pass<'_> {
    async fn run(self, now: Timestamp) -> Result<(), Trouble> {
        let has_old = self.before.compacted.as_ref().is_some_and(|compacted| {
            let at = compacted.tombstones_at;
            at.is_some_and(|at| at <= self.old_before)
        });
        let mut latest = Latest::default();
        if has_old {
            latest = self.note_old_tombstones(latest).await?;
        }
        let (latest, place, new) = self.note_latest(latest).await?;
        if place.offset == self.before.anchor.offset && !has_old {
            return Ok(());
        }
        let thinning = Thinning::new(latest, place.offset, place.offset, self.old_before);
        let Some((seqs, thinning)) = self.rewrite(thinning, place.offset).await? else {
            return Ok(());
        };
        let left_at = thinning.tombstones_at(now);
        let referred = self.write_referred(new, now).await?;
        let last_seq = referred.map_or(seqs.1, |(_, last)| last);
        let first_referred = referred.map_or(0, |(first, _)| first);
        let compacted = Compacted::new(self.pass, (seqs.0, last_seq), left_at, first_referred);
        let (store, at) = (self.store, self.at);
        let moved = Beginning {
            anchor: place,
            compacted: Some(Arc::new(compacted)),
            ..self.before.clone()
        };
        store.check_agreement()?;
        store.write(&[store.start_put(at, moved)]).await?;
        if let Some(replaced) = &self.before.compacted {
            store.purge_compacted(at, replaced).await;
        }
        let from = self.before.anchor.offset;
        tracing::debug!(partition = %at, %from, to = %place.offset, "a partition was compacted");
        Ok(())
    }

    /// The first offset that is kept.
    fn first(&self) -> Offset {
        self.before.start
    }

    async fn note_old_tombstones(&self, mut latest: Latest) -> Result<Latest, Trouble> {
        let (clean, old_before) = (self.before.anchor.offset, self.old_before);
        let mut from = self.first();
        loop {
            let pieces = self.store.pieces(self.at, from, clean).await?;
            let Some(last) = pieces.last() else {
                return Ok(latest);
            };
            from = last.run.next;
            let runs: Vec<Run> = pieces.into_iter().map(|piece| piece.run).collect();
            let noted = move || {
                let is_full = latest.note_old_tombstones(&runs, clean, old_before);
                (latest, is_full)
            };
            let (noted, is_full) = beside(noted).await?;
            latest = noted;
            if is_full {
                return Ok(latest);
            }
        }
    }

    /// The positions of the latest messages, and the place up to which they are known. What is damaged is not rewritten, nor what follows it.
    async fn note_latest(
        &self,
        mut latest: Latest,
    ) -> Result<(Latest, Anchor, Vec<Referred>), Trouble> {
        let mut all_referred = Vec::new();
        let clean = self.before.anchor.offset;
        let mut place = self.before.anchor;
        let mut is_first = true;
        loop {
            let from = place.offset.max(self.first());
            let pieces = self.store.pieces(self.at, from, self.end).await?;
            if pieces.is_empty() {
                return Ok((latest, place, all_referred));
            }
            for piece in pieces {
                let Piece {
                    run,
                    last_seq,
                    referred,
                } = piece;
                if run.batches.is_err() {
                    return Ok((latest, place, all_referred));
                }
                let next = Anchor {
                    offset: run.next,
                    seq: last_seq,
                };
                let noted = move || {
                    let full_at = latest.note(&[run], clean, is_first);
                    (latest, full_at)
                };
                let (noted, full_at) = beside(noted).await?;
                latest = noted;
                is_first = false;
                if full_at.is_some() {
                    return Ok((latest, place, all_referred));
                }
                all_referred.extend(referred);
                place = next;
            }
        }
    }

    /// Writes what is left before `clean`; returns the first and the last sequence. `None` if something cannot be read, so that nothing can
    /// be replaced.
    async fn rewrite(
        &self,
        mut thinning: Thinning,
        clean: Offset,
    ) -> Result<Option<((u64, u64), Thinning)>, Trouble> {
        let mut seqs: Option<(u64, u64)> = None;
        let mut from = self.first();
        loop {
            let pieces = self.store.pieces(self.at, from, clean).await?;
            let Some(last) = pieces.last() else {
                return Ok(seqs.map(|seqs| (seqs, thinning)));
            };
            from = last.run.next;
            let runs: Vec<Run> = pieces.into_iter().map(|piece| piece.run).collect();
            let (at, stamp) = (self.at, Stamp::of(self.at));
            let thinned = move || {
                let left: Option<Vec<(RecordBatch, Timestamp)>> = left(&mut thinning, runs);
                let placed = left.map(|left| {
                    let placed = left.into_iter().map(|(batch, committed_at)| {
                        let base = batch.base_offset();
                        (batch.placed(base, stamp), committed_at)
                    });
                    placed.collect::<Vec<_>>()
                });
                (thinning, placed)
            };
            let (after, left) = beside(thinned).await?;
            thinning = after;
            let Some(left) = left else {
                tracing::warn!(partition = %at, "a partition with damage in what was compacted is not compacted again; `millrace copy` leaves the damage behind");
                return Ok(None);
            };
            let puts: Vec<Put> = left
                .iter()
                .flat_map(|(batch, committed_at)| self.puts(batch, *committed_at))
                .collect();
            if puts.is_empty() {
                continue;
            }
            let passed = self.store.write(&puts).await?;
            let (first, last) = (passed.first_seq, passed.first_seq + puts.len() as u64 - 1);
            seqs = Some((seqs.map_or(first, |(first, _)| first), last));
        }
    }

    /// Writes the sequences and offsets of batches for which somebody may ask, before and now: as long as a producer is known, and no more
    /// than fit. Returns the first and the last sequence of that.
    async fn write_referred(
        &self,
        new: Vec<Referred>,
        now: Timestamp,
    ) -> Result<Option<(u64, u64)>, Trouble> {
        let mut all = match &self.before.compacted {
            Some(before) => Vec::clone(&*self.store.all_referred(self.at, before).await?),
            None => Vec::new(),
        };
        all.extend(new);
        let asked_since = now
            .0
            .saturating_sub(PRODUCER_IDLE_MS.max(REQUEST_AGE_MS_MAX));
        all.retain(|one| one.at.0 >= asked_since);
        let some = all.split_off(all.len().saturating_sub(REFERRED_MAX));
        let mut seqs: Option<(u64, u64)> = None;
        for some in some.chunks(REFERRED_TOGETHER) {
            let put = Put {
                subject: self.store.subjects.compacted(self.at, self.pass),
                body: encode_referred(some).into(),
                ..Put::default()
            };
            let passed = self.store.write(&[put]).await?;
            let seq = passed.first_seq;
            seqs = Some((seqs.map_or(seq, |(first, _)| first), seq));
        }
        Ok(seqs)
    }

    /// The messages of a batch that is left.
    fn puts(&self, batch: &RecordBatch, committed_at: Timestamp) -> Vec<Put> {
        let (base, end) = (batch.base_offset(), batch.end_offset());
        let span = end.0 - base.0;
        let (messages, latest) = (batch.messages_within(base, end), batch.max_timestamp().0);
        let note = |part: usize, parts: usize| {
            format!(
                "{part} {parts} {span} {messages} {latest} {} {}",
                base.0, committed_at.0
            )
        };
        let subject = self.store.subjects.compacted(self.at, self.pass);
        let body: &Bytes = batch.bytes();
        self.store.in_parts(&subject, body, note)
    }
}

/// What is left of runs, with the times of their commits; `None` if one cannot be read.
fn left(thinning: &mut Thinning, runs: Vec<Run>) -> Option<Vec<(RecordBatch, Timestamp)>> {
    let mut all = Vec::new();
    for run in runs {
        let batches = match thinning.thin(&run) {
            Left::All => run.batches.ok()?,
            Left::Some(left) => left.batches,
            Left::Nothing => Vec::new(),
        };
        all.extend(batches.into_iter().map(|batch| (batch, run.at)));
    }
    Some(all)
}

/// Runs what takes processor time beside the tasks of the host.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Trouble> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Trouble::unavailable("a thread of compaction failed"))
}
