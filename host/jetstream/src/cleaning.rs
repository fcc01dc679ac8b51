//! What one of the hosts does for all: it writes the counts, moves the starts of partitions by what their topics keep, and removes what is
//! below the starts, as far as everybody has counted it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_model::{Offset, Topic, TopicPartition};
use tokio::sync::watch;

use crate::store::Store;
use crate::trouble::Trouble;

/// Batches after which the counts are written, whatever the time.
const UNCOUNTED_MAX: u64 = 10_000;
/// How long the host that writes counts may not have compared its own.
const UNAGREED_DURATION_MAX: Duration = Duration::from_secs(20);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) async fn run(store: Arc<Store>, mut stop: watch::Receiver<bool>) {
    let mut counted_at = store.clock.monotonic();
    let mut cleaned_at = store.clock.monotonic();
    let mut purged = HashMap::new();
    let mut unagreed_at = None;
    let look = LOOK_INTERVAL
        .min(store.options.checkpoint_interval)
        .min(store.options.cleaning_interval);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(look) => {}
        }
        // One that stands still is not listed by itself either.
        if !store.is_wanted() {
            continue;
        }
        let now = store.clock.monotonic();
        if store.check_agreement().is_err() {
            let since = *unagreed_at.get_or_insert(now);
            // Nobody else writes counts that it could be compared with.
            if now.saturating_sub(since) > UNAGREED_DURATION_MAX {
                unagreed_at = None;
                store.counting.begin_anew();
            }
            continue;
        }
        unagreed_at = None;
        let uncounted = store.mirror.heard.read().uncounted;
        let passed = now.saturating_sub(counted_at);
        let is_due = uncounted > 0 && passed >= store.options.checkpoint_interval;
        if is_due || uncounted >= UNCOUNTED_MAX {
            counted_at = now;
            report(
                "the counts cannot be written now",
                store.write_counts().await,
            );
        }
        if now.saturating_sub(cleaned_at) >= store.options.cleaning_interval {
            cleaned_at = now;
            let cleaned = store.clean(&mut purged).await;
            report("what is no longer kept cannot be removed now", cleaned);
        }
    }
}

fn report(what: &str, done: Result<(), Trouble>) {
    match done {
        // Somebody else has done it.
        Ok(()) | Err(Trouble::Moved) => {}
        Err(error) => tracing::warn!(%error, "{what}; it is tried again"),
    }
}

impl Store {
    /// Whether this host is the one of those that live.
    pub(crate) fn is_wanted(&self) -> bool {
        let hosts = self.mirror.hosts();
        let first = hosts.borrow().first().map(|host| host.id);
        first == Some(self.me)
    }

    pub(crate) async fn write_counts(&self) -> Result<(), Trouble> {
        self.check_agreement()?;
        let (as_of, body, seq) = {
            let heard = self.mirror.heard.read();
            let body = Bytes::from(heard.counts.encode());
            let seq = heard.agreement.reached().ok_or(Trouble::Moved)?;
            (heard.counts.as_of(), body, seq)
        };
        let note = |_, parts| format!("{as_of} {parts}");
        let mut parts = self.in_parts("", &body, note);
        for (number, part) in parts.iter_mut().enumerate() {
            part.subject = self.subjects.checkpoint(number);
            part.is_last = true;
            if number == 0 {
                part.expected = Some(seq);
            }
        }
        self.write(&parts).await?;
        Ok(())
    }

    pub(crate) async fn clean(
        &self,
        purged: &mut HashMap<TopicPartition, u64>,
    ) -> Result<(), Trouble> {
        self.check_agreement()?;
        for topic in self.mirror.topics() {
            let settings = &topic.spec.settings;
            if settings.retention_ms.is_some() || settings.retention_bytes.is_some() {
                for partition in topic.partitions() {
                    self.move_start(&topic, partition).await?;
                }
            }
        }
        let now = self.clock.monotonic();
        let anchors: Vec<(TopicPartition, u64)> = {
            let mut heard = self.mirror.heard.write();
            let safe = heard.counted.safe(now, self.options.counted_after);
            let anchors = heard.partitions.iter();
            anchors
                .map(|(at, known)| (*at, known.anchor.seq.min(safe)))
                .collect()
        };
        purged.retain(|at, _| self.mirror.exists(*at));
        for (at, seq) in anchors {
            let done = purged.entry(at).or_default();
            if seq > *done {
                self.check_agreement()?;
                let pieces = self.subjects.piece(at);
                let purge = self.stream.purge().sequence(seq + 1).filter(pieces);
                purge.await.map_err(Trouble::unavailable)?;
                *done = seq;
            }
        }
        Ok(())
    }

    /// Moves the start of a partition behind what its topic no longer keeps: whole blocks of the index.
    async fn move_start(&self, topic: &Topic, at: TopicPartition) -> Result<(), Trouble> {
        let settings = &topic.spec.settings;
        let blocks = self.blocks(at).await.map_err(Trouble::unavailable)?;
        let start = {
            let heard = self.mirror.heard.read();
            let Some(known) = heard.partitions.get(&at) else {
                return Ok(());
            };
            let end_of = |number: usize| {
                let end = blocks.get(number).map(|(_, end)| *end);
                end.unwrap_or(known.start)
            };
            let mut start = Offset::default();
            if let Some(kept_ms) = settings.retention_ms {
                let oldest = self.clock.wall().0.saturating_sub(kept_ms);
                let old = blocks
                    .iter()
                    .take_while(|(block, _)| block.latest.0 < oldest);
                let count = old.count();
                start = start.max(count.checked_sub(1).map_or(start, end_of));
            }
            if let Some(kept) = settings.retention_bytes {
                let mut bytes = 0u64;
                let over = blocks.iter().rposition(|(block, _)| {
                    bytes = bytes.saturating_add(block.bytes);
                    bytes > kept
                });
                start = start.max(over.map_or(start, end_of));
            }
            match start > known.start {
                true => start,
                false => return Ok(()),
            }
        };
        self.check_agreement()?;
        match self.trim(at, start).await {
            Ok(start) => {
                let (topic, partition) = (&topic.spec.name, at.partition);
                tracing::info!(%topic, %partition, %start, "messages are no longer kept: the partition's start has moved");
                Ok(())
            }
            Err(error) => Err(Trouble::unavailable(error)),
        }
    }
}
