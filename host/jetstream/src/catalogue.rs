//! Topics, modules and producers' identities: each change is decided on what this host has heard, and one step that expects it to be so.

use bytes::{Bytes, BytesMut};
use millrace_engine::contract::{changed, check_partitions};
use millrace_engine::idempotence::Idempotence;
use millrace_engine::{CommitError, Expectation, ReadError, TopicChange, TopicError, TrimError};
use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{
    Digest, Offset, ProducerId, Topic, TopicId, TopicName, TopicPartition, TopicSpec,
};

use crate::atomic::{self, BATCH_PUTS_MAX, GONE, Put};
use crate::cells::{Known, decode_named, encode_named, last_id};
use crate::heard::{Beginning, Heard};
use crate::store::{Store, random};
use crate::trouble::Trouble;

/// How often a change is decided again because others changed the same.
pub(crate) const TRIES_MAX: u32 = 100;
/// Bytes of one message of a module.
const MODULE_PART_BYTES_MAX: usize = 512 << 10;

impl Store {
    /// Decides and writes a change until nobody comes between. A refusal is decided a second time, on all that is in the stream.
    pub(crate) async fn change<T, E: From<CommitError> + From<Trouble>>(
        &self,
        expects: &[Expectation],
        decide: impl Fn(&Heard) -> Result<(T, Vec<Put>), E>,
    ) -> Result<T, E> {
        let mut tries = 0;
        let mut is_synced = false;
        loop {
            tries += 1;
            let decided = match self.check_expectations(expects) {
                Ok(checks) => decide(&self.mirror.heard.read()).map(|done| (done, checks)),
                Err(broken) => Err(broken.into()),
            };
            let ((done, mut puts), checks) = match decided {
                Ok(decided) => decided,
                Err(refused) if is_synced => return Err(refused),
                Err(_) => {
                    self.sync().await?;
                    is_synced = true;
                    continue;
                }
            };
            for (number, (subject, seq)) in checks.into_iter().enumerate() {
                match puts.iter_mut().find(|put| put.subject == subject) {
                    // Decided on the older of both, or somebody came between.
                    Some(put) => put.expected = Some(put.expected.map_or(seq, |own| own.min(seq))),
                    None => {
                        let carrier = self.subjects.check(self.me, number);
                        puts.push(Put::check(carrier, subject, seq));
                    }
                }
            }
            if puts.is_empty() {
                return Ok(done);
            }
            match self.write(&puts).await {
                Ok(_) => return Ok(done),
                Err(Trouble::Moved) if tries < TRIES_MAX => {
                    self.sync().await?;
                    is_synced = true;
                }
                Err(trouble) => return Err(trouble.into()),
            }
        }
    }

    pub(crate) fn topics_put(&self, heard: &Heard) -> Put {
        Put::cell(self.subjects.topics(), Some(heard.topics_seq), Bytes::new())
    }

    pub(crate) fn topic_put(&self, topic: &Topic) -> Put {
        let spec = serde_json::to_vec(&topic.spec);
        let spec = spec.unwrap_or_else(|error| unreachable!("plain data: {error}"));
        Put::cell(self.subjects.topic(topic.id), None, spec)
    }

    /// Whether a topic can be as it is asked for.
    pub(crate) fn check_spec(&self, spec: &TopicSpec) -> Result<(), TopicError> {
        if spec.partitions == 0 || spec.partitions > TOPIC_PARTITIONS_MAX {
            let (asked, max) = (spec.partitions, TOPIC_PARTITIONS_MAX);
            return Err(TopicError::Partitions { asked, max });
        }
        Ok(self.check_durable(Some(spec.durability))?)
    }

    pub(crate) async fn create_topic(
        &self,
        spec: TopicSpec,
        expects: Vec<Expectation>,
    ) -> Result<Topic, TopicError> {
        self.check_spec(&spec)?;
        self.change::<_, TopicError>(&expects, |heard| {
            if heard.topics.contains_key(&spec.name) {
                return Err(TopicError::Exists(spec.name.clone()));
            }
            let have = heard.partitions.len();
            check_partitions(&self.tables.room, have, spec.partitions)?;
            let topic = Topic {
                id: TopicId(heard.last_topic_id() + 1),
                spec: spec.clone(),
            };
            let puts = vec![self.topics_put(heard), self.topic_put(&topic)];
            Ok((topic, puts))
        })
        .await
    }

    pub(crate) async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError> {
        for (_, change) in &changes {
            self.check_durable(change.durability)?;
        }
        self.change::<_, TopicError>(&expects, |heard| {
            let find = |name: &TopicName| heard.topics.get(name).cloned();
            let (topics, more) = changed(changes.clone(), find)?;
            if more > 0 {
                check_partitions(&self.tables.room, heard.partitions.len(), more)?;
            }
            let mut puts = vec![self.topics_put(heard)];
            for (number, topic) in topics.iter().enumerate() {
                // Of several changes of one topic, the last has all.
                if !topics[number + 1..]
                    .iter()
                    .any(|later| later.id == topic.id)
                {
                    puts.push(self.topic_put(topic));
                }
            }
            if puts.len() >= BATCH_PUTS_MAX {
                let (bytes, max) = (puts.len(), BATCH_PUTS_MAX);
                return Err(CommitError::TooLarge { bytes, max }.into());
            }
            Ok((topics, puts))
        })
        .await
    }

    pub(crate) async fn delete_topic(
        &self,
        name: &TopicName,
        expects: Vec<Expectation>,
    ) -> Result<TopicId, TopicError> {
        let gone = self
            .change::<_, TopicError>(&expects, |heard| {
                let topic = heard.topics.get(name);
                let topic = topic.ok_or_else(|| TopicError::Unknown(name.clone()))?;
                let gone = Put::cell(self.subjects.topic(topic.id), None, Bytes::new());
                Ok((topic.id, vec![self.topics_put(heard), gone.noted(GONE)]))
            })
            .await?;
        for subject in self.subjects.of_topic(gone) {
            let purge = self.stream.purge().filter(subject).await;
            if let Err(error) = purge {
                tracing::warn!(%error, topic = %name, "not all of a deleted topic could be removed; it takes space until the stream is purged of it");
            }
        }
        Ok(gone)
    }

    pub(crate) async fn trim(
        &self,
        partition: TopicPartition,
        before: Offset,
    ) -> Result<Offset, TrimError> {
        let unread = |error: ReadError| TrimError::Commit(error.into());
        for _ in 0..TRIES_MAX {
            let mut ends = self.mirror.ends(partition).map_err(unread)?;
            if before > ends.end {
                self.sync().await?;
                ends = self.mirror.ends(partition).map_err(unread)?;
            }
            if before > ends.end {
                let (requested, end) = (before, ends.end);
                return Err(TrimError::PastEnd { requested, end });
            }
            if before <= ends.start {
                // Another host may have moved it further.
                self.sync().await?;
                return Ok(self.mirror.ends(partition).map_err(unread)?.start);
            }
            let known = {
                let heard = self.mirror.heard.read();
                heard.partition(partition).map_err(unread)?.beginning()
            };
            let mut moved = Beginning {
                start: before,
                ..known.clone()
            };
            if before >= known.anchor.offset {
                moved.anchor = self.anchor_at(partition, before).await.map_err(unread)?;
                moved.compacted = None;
            }
            let dropped = known.compacted.filter(|_| moved.compacted.is_none());
            match self.write(&[self.start_put(partition, moved)]).await {
                Ok(_) => {
                    if let Some(dropped) = dropped {
                        self.purge_compacted(partition, &dropped).await;
                    }
                    return Ok(self.mirror.ends(partition).map_err(unread)?.start);
                }
                Err(Trouble::Moved) => self.sync().await?,
                Err(trouble) => return Err(trouble.into()),
            }
        }
        Err(Trouble::Moved.into())
    }

    pub(crate) async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError> {
        let size = self.part_bytes().min(MODULE_PART_BYTES_MAX);
        let count = bytes.len().div_ceil(size).max(1);
        if count > BATCH_PUTS_MAX {
            let (bytes, max) = (bytes.len(), BATCH_PUTS_MAX * size);
            return Err(CommitError::TooLarge { bytes, max });
        }
        // What is there may be damaged; storing it again repairs it.
        let part = |part: usize| {
            let body = bytes.slice(part * size..bytes.len().min((part + 1) * size));
            let subject = self.subjects.module(digest, part);
            Put::cell(subject, None, body).noted(format!("{part} {count}"))
        };
        let parts: Vec<Put> = (0..count).map(part).collect();
        atomic::publish(&self.client, &parts, random).await?;
        Ok(())
    }

    pub(crate) async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError> {
        for _ in 0..TRIES_MAX {
            let first = self.last(&self.subjects.module(digest, 0)).await?;
            let Some(first) = first.filter(|first| !first.body.is_empty()) else {
                return Ok(None);
            };
            let parts = first.note.as_ref().and_then(|note| note.number(1));
            let mut bytes = BytesMut::from(&*first.body);
            let mut is_whole = true;
            for part in 1..parts.unwrap_or(1) {
                // They were stored in one step.
                match self.at(first.seq + part).await? {
                    Some(message) => bytes.extend_from_slice(&message.body),
                    // It was stored again, or deleted.
                    None => is_whole = false,
                }
            }
            if is_whole {
                return Ok(Some(bytes.freeze()));
            }
        }
        Err(Trouble::unavailable("others keep storing the module").into())
    }

    pub(crate) async fn delete_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        self.change(&expects, |_| {
            let gone = Put::cell(self.subjects.module(digest, 0), None, Bytes::new());
            Ok::<_, CommitError>(((), vec![gone.noted(GONE)]))
        })
        .await?;
        let last = self.last(&self.subjects.module(digest, 0)).await?;
        if let Some(last) = last.filter(|last| last.body.is_empty()) {
            let parts = self.subjects.module_parts(digest);
            let purge = self.stream.purge().sequence(last.seq).filter(parts);
            purge.await.map_err(Trouble::unavailable)?;
        }
        Ok(())
    }

    /// A producer's id that nobody else has: the sequence of a message, and what is added to all of them.
    async fn new_producer_id(&self) -> Result<i64, Trouble> {
        let ids = self.subjects.ids();
        let mut known = self.cells.get(&ids);
        for _ in 0..TRIES_MAX {
            let before = match known.take() {
                Some(known) => known,
                None => self.read_cell(&ids).await?,
            };
            let put = Put::cell(ids.clone(), Some(before.seq), before.body.clone());
            match atomic::publish(&self.client, &[put], random).await {
                Ok(seq) => {
                    let body = before.body;
                    let given = Known { seq, body };
                    self.cells.put(&ids, given.clone());
                    let id = last_id(&given).and_then(|id| i64::try_from(id).ok());
                    return id.ok_or_else(|| Trouble::malformed("ids of producers"));
                }
                Err(Trouble::Moved) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        Err(Trouble::Moved)
    }

    pub(crate) async fn init_producer(
        &self,
        name: Option<&str>,
    ) -> Result<ProducerId, CommitError> {
        let Some(name) = name else {
            let id = self.new_producer_id().await?;
            return Ok(ProducerId { id, epoch: 0 });
        };
        let subject = self.subjects.name(name);
        let mut fresh = None;
        for _ in 0..TRIES_MAX {
            let known = self.read_cell(&subject).await?;
            let mut idempotence = Idempotence::default();
            idempotence.apply_moment(self.clock.wall());
            let named = decode_named(&known.body);
            if let Some((name, named)) = named {
                idempotence.producers.insert_name(name, named);
            }
            // An id no one has is needed only for a new name, or one whose epochs are used up.
            idempotence.producers.set_next_id(fresh.unwrap_or(-1));
            let given = idempotence.producers.decide(Some(name))?;
            if given.id < 0 {
                fresh = Some(self.new_producer_id().await?);
                continue;
            }
            let named = millrace_engine::idempotence::producers::Named {
                producer: given,
                at: self.clock.wall(),
            };
            let body = encode_named(name, named);
            let puts = [
                Put::cell(subject.clone(), Some(known.seq), body.clone()),
                Put::cell(self.subjects.id(given.id), None, body),
            ];
            match self.write(&puts).await {
                Ok(_) => {
                    self.read_cell(&subject).await?;
                    self.read_cell(&self.subjects.id(given.id)).await?;
                    return Ok(given);
                }
                Err(Trouble::Moved) => {}
                Err(trouble) => return Err(trouble.into()),
            }
        }
        Err(Trouble::Moved.into())
    }
}
