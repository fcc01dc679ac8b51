//! Chooses the partition of a message: by its key as Kafka's clients do, sticky without a key, or by the topic's component, whose
//! answer is checked before use.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millrace_engine::{Engine, ReadError};
use millrace_model::processor::{Grants, Limits};
use millrace_model::{ColumnBatch, Digest, Topic, TopicId};
use parking_lot::{Mutex, MutexGuard};

use crate::handler::{
    AdmitError, CallError, LiveConfig, LoadRequest, ModuleHost, PartitionHandler,
};

/// Messages without a key stay in one partition for this many bytes, so that they form few large batches,
const STICKY_BYTES: usize = 16 << 10;
/// and for this long: otherwise slow streams would stay in one partition for hours while the others are idle. Within a call only the
/// bytes count.
const STICKY_TIME: Duration = Duration::from_millis(10);

/// Why a topic's partitioner is unavailable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartitionerError {
    /// Its module was deleted.
    #[error("its module {0} does not exist; upload it again")]
    UnknownModule(Digest),
    /// It cannot be loaded.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// Its bytes cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Chooses partitions of one topic. All writers to the topic share it, so they all see added partitions at once.
pub(crate) struct Partitioner {
    partitions: AtomicU32,
    component: Option<Arc<dyn PartitionHandler>>,
    sticky: Mutex<Sticky>,
}

#[derive(Debug)]
struct Sticky {
    partition: u32,
    bytes: usize,
    /// Since when this partition is used, by the monotonic clock; `None` before the first message.
    since: Option<Duration>,
}

impl Sticky {
    fn move_on(&mut self, partitions: u32) {
        self.partition = (self.partition + 1) % partitions;
        self.bytes = 0;
    }
}

impl Partitioner {
    /// A partitioner of `partitions` partitions; without a component, the built-in one. It starts with a random partition, so that not
    /// every host start and every small topic uses the same one.
    pub(crate) fn new(partitions: u32, component: Option<Arc<dyn PartitionHandler>>) -> Self {
        Self::beginning_at(fastrand::u32(..partitions.max(1)), partitions, component)
    }

    fn beginning_at(
        partition: u32,
        partitions: u32,
        component: Option<Arc<dyn PartitionHandler>>,
    ) -> Self {
        Self {
            partitions: AtomicU32::new(partitions),
            component,
            sticky: Mutex::new(Sticky {
                partition,
                bytes: 0,
                since: None,
            }),
        }
    }

    /// A lower bound of the topic's present number of partitions.
    pub(crate) fn partitions(&self) -> u32 {
        self.partitions.load(Ordering::Acquire)
    }

    /// The topic durably has this many partitions; never fewer than before.
    pub(crate) fn grow(&self, partitions: u32) {
        self.partitions.fetch_max(partitions, Ordering::AcqRel);
    }

    /// Whether a component chooses.
    pub(crate) fn is_component(&self) -> bool {
        self.component.is_some()
    }

    /// The built-in choice among this many partitions, at this moment of the monotonic clock, for messages that arrive together. The
    /// caller passes its own count, because it may know of fewer and must not get a partition that it does not know.
    pub(crate) fn built_in(&self, partitions: u32, now: Duration) -> BuiltIn<'_> {
        BuiltIn {
            partitions: partitions.max(1),
            sticky: self.sticky.lock(),
            now,
            has_chosen: false,
        }
    }

    /// The component's choice among this many partitions: one per message.
    pub(crate) async fn by_component(
        &self,
        partitions: u32,
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<u32>, CallError> {
        let Some(component) = &self.component else {
            let mut built_in = self.built_in(partitions, Duration::ZERO);
            let choose = |message| built_in.choose(messages.key(message), 0);
            return Ok((0..messages.len()).map(choose).collect());
        };
        let assigned = component.assign(partitions, messages).await?;
        check_assigned(&assigned, messages.len(), partitions)?;
        Ok(assigned)
    }
}

fn check_assigned(assigned: &[u32], messages: usize, partitions: u32) -> Result<(), CallError> {
    if assigned.len() != messages {
        return Err(CallError::BadAnswer(format!(
            "the partitioner returned {} partitions for {messages} messages; return one per message",
            assigned.len()
        )));
    }
    match assigned.iter().position(|&p| p >= partitions) {
        None => Ok(()),
        Some(message) => Err(CallError::BadAnswer(format!(
            "the partitioner chose partition {} for message {message}, but there are only {partitions}",
            assigned[message]
        ))),
    }
}

/// The built-in choice; locks the topic's sticky partition.
pub(crate) struct BuiltIn<'a> {
    partitions: u32,
    sticky: MutexGuard<'a, Sticky>,
    now: Duration,
    /// Whether there was already a message without a key.
    has_chosen: bool,
}

impl BuiltIn<'_> {
    /// The partition of a message of this many bytes.
    pub(crate) fn choose(&mut self, key: Option<&[u8]>, bytes: usize) -> u32 {
        match key {
            Some(key) => by_key(key, self.partitions),
            None => self.stick(bytes),
        }
    }

    fn stick(&mut self, bytes: usize) -> u32 {
        let sticky = &mut *self.sticky;
        if !std::mem::replace(&mut self.has_chosen, true) {
            let since = *sticky.since.get_or_insert(self.now);
            if self.now.saturating_sub(since) >= STICKY_TIME {
                sticky.move_on(self.partitions);
                sticky.since = Some(self.now);
            }
        }
        // Another caller may have moved on to a partition that this one does not know yet.
        let chosen = sticky.partition % self.partitions;
        sticky.bytes += bytes.max(1);
        if sticky.bytes >= STICKY_BYTES {
            sticky.move_on(self.partitions);
            sticky.since = Some(self.now);
        }
        chosen
    }
}

/// The partition of a key, the same as in Kafka's Java client.
pub(crate) fn by_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// Murmur2, 32 bits, with the seed of Kafka's clients.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !rest.is_empty() {
        for (index, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partitioners of all topics in use, each loaded when first needed.
#[derive(Default)]
pub(crate) struct Partitioners {
    loaded: Mutex<HashMap<TopicId, Arc<Partitioner>>>,
}

impl Partitioners {
    /// The topic's partitioner, with at least as many partitions as this `topic`.
    pub(crate) async fn of(
        &self,
        topic: &Topic,
        engine: &dyn Engine,
        modules: &dyn ModuleHost,
    ) -> Result<Arc<Partitioner>, PartitionerError> {
        if let Some(partitioner) = self.loaded.lock().get(&topic.id) {
            partitioner.grow(topic.spec.partitions);
            return Ok(Arc::clone(partitioner));
        }
        let component = match topic.spec.partitioner {
            None => None,
            Some(digest) => {
                Some(load_component(digest, topic.spec.name.as_str(), engine, modules).await?)
            }
        };
        let partitioner = Arc::new(Partitioner::new(topic.spec.partitions, component));
        let partitioner = {
            let mut loaded = self.loaded.lock();
            Arc::clone(loaded.entry(topic.id).or_insert(partitioner))
        };
        // If the topic grew while the component was being loaded, the growth found no partitioner to notify.
        let now = engine.topic(&topic.spec.name);
        match now.filter(|now| now.id == topic.id) {
            Some(now) => partitioner.grow(now.spec.partitions),
            // It was deleted meanwhile, and forgotten before there was anything to forget.
            None => self.forget(topic.id),
        }
        Ok(partitioner)
    }

    /// The topic has more partitions now.
    pub(crate) fn grow(&self, topic: &Topic) {
        if let Some(partitioner) = self.loaded.lock().get(&topic.id) {
            partitioner.grow(topic.spec.partitions);
        }
    }

    /// Forgets the partitioner of a deleted topic.
    pub(crate) fn forget(&self, topic: TopicId) {
        self.loaded.lock().remove(&topic);
    }
}

/// Loads a partitioner component for a topic.
pub(crate) async fn load_component(
    digest: Digest,
    topic: &str,
    engine: &dyn Engine,
    modules: &dyn ModuleHost,
) -> Result<Arc<dyn PartitionHandler>, PartitionerError> {
    let bytes = engine.module(digest).await?;
    let bytes = bytes.ok_or(PartitionerError::UnknownModule(digest))?;
    let request = LoadRequest {
        digest,
        bytes,
        owner: topic.to_owned(),
        revision: 0,
        limits: Limits::default(),
        grants: Grants::default(),
        config: LiveConfig::default(),
        access: None,
    };
    Ok(modules.partitioner(request).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_gives_the_values_of_kafkas_java_client() {
        let known: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key) as i32, hash, "{:?}", str::from_utf8(key));
        }
    }

    #[test]
    fn a_key_always_has_the_same_partition_within_range() {
        for partitions in [1, 2, 7, 10_000] {
            for key in 0..1_000u32 {
                let chosen = by_key(&key.to_le_bytes(), partitions);
                assert!(chosen < partitions);
                assert_eq!(chosen, by_key(&key.to_le_bytes(), partitions));
            }
        }
    }

    #[test]
    fn messages_without_a_key_stick_until_a_batch_is_full_and_then_move_on() {
        let partitioner = Partitioner::beginning_at(0, 3, None);
        let now = Duration::from_secs(7);
        let chosen: Vec<u32> = (0..10)
            .map(|_| partitioner.built_in(3, now).choose(None, 8 << 10))
            .collect();
        assert_eq!(chosen, [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]);
    }

    #[test]
    fn small_messages_without_a_key_move_on_with_time_and_a_call_stays_together() {
        let partitioner = Partitioner::beginning_at(2, 3, None);
        let at = |ms| partitioner.built_in(3, Duration::from_millis(ms));
        let mut chosen = Vec::new();
        for ms in [1_000, 1_009, 1_010, 1_019, 1_500, 60_000] {
            let mut call = at(ms);
            let of_call = [(); 3].map(|()| call.choose(None, 50));
            assert_eq!(of_call, [of_call[0]; 3], "a call is not torn");
            chosen.push(of_call[0]);
        }
        assert_eq!(chosen, [2, 2, 0, 0, 1, 2]);
    }

    #[test]
    fn who_knows_of_fewer_partitions_is_given_one_of_those_and_all_are_used_by_others() {
        let partitioner = Partitioner::beginning_at(2, 3, None);
        partitioner.grow(6);
        partitioner.grow(5);
        assert_eq!(partitioner.partitions(), 6, "never fewer");
        let now = Duration::from_secs(7);
        let choose = |partitions| {
            partitioner
                .built_in(partitions, now)
                .choose(None, STICKY_BYTES)
        };
        assert_eq!([(); 4].map(|()| choose(6)), [2, 3, 4, 5]);
        partitioner.sticky.lock().partition = 5;
        assert_eq!(choose(3), 2);
        let keyed = |partitions| partitioner.built_in(partitions, now).choose(Some(b"k"), 1);
        assert_eq!([keyed(3), keyed(6)], [by_key(b"k", 3), by_key(b"k", 6)]);
    }

    #[test]
    fn the_first_message_without_a_key_may_be_in_any_partition() {
        let first = |_| {
            Partitioner::new(8, None)
                .built_in(8, Duration::ZERO)
                .choose(None, 1)
        };
        let mut begun: Vec<u32> = (0..200).map(first).collect();
        begun.sort_unstable();
        begun.dedup();
        assert!(begun.len() > 4, "{begun:?}");
    }

    #[test]
    fn a_component_that_answers_out_of_range_or_short_is_not_believed() {
        assert!(check_assigned(&[0, 1, 2], 3, 3).is_ok());
        for wrong in [&[0u32, 1][..], &[0, 1, 3], &[0, 1, 2, 0]] {
            let refused = check_assigned(wrong, 3, 3);
            assert!(matches!(refused, Err(CallError::BadAnswer(_))), "{wrong:?}");
        }
    }
}
